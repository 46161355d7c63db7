"""How large each part of `pytest bench/` is: for a laptop (`--quick`), a CPU, a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

MEAN_CAPTIONS = (12, 20, 40, 77)  # tokens; web alt-text has 15 to 25
_PAIRS_ON_40_GB = 896


class Rounds(NamedTuple):
    """How often a case is timed: visits to it, spread over the run, and rounds of each."""

    visits: int
    each: int

    @property
    def of_visit(self) -> int:
        """Rounds that count as one: those of a visit, but each for itself where there is one visit."""
        return self.each if self.visits > 1 else 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rounds and sizes of one run."""

    model: str
    pairs: int  # of towers and step
    precision: str  # of towers and step: --precision
    dtype: torch.dtype  # of the ops by themselves
    losses: tuple[tuple[int, int], ...]  # pairs, width
    captions: int  # of the tokenizer
    pictures: int  # of an epoch of the loader
    ops: Rounds
    parts: Rounds  # towers, loader, tokenizer
    steps: Rounds
    round_seconds: float  # an op is called again until a round takes as long
    trainer_rounds: int
    trainer_steps: int  # with the warm-up
    trainer_pairs: int
    compiled: bool  # whether the reference is compiled too, which takes minutes

    @property
    def step_dtype(self) -> torch.dtype:
        """Of the products in towers and step."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


QUICK = Sizes(
    model="ViT-S-32-alt", pairs=8, precision="fp32", dtype=torch.float32,
    losses=((128, 256), (256, 256), (512, 256)), captions=1000, pictures=96,
    ops=Rounds(6, 5), parts=Rounds(7, 1), steps=Rounds(1, 7), round_seconds=0.02,
    trainer_rounds=3, trainer_steps=8, trainer_pairs=8, compiled=False,
)  # fmt: skip
CPU = Sizes(
    model="ViT-B-32-256", pairs=32, precision="fp32", dtype=torch.float32,
    losses=((256, 512), (1024, 512), (4096, 512)), captions=10_000, pictures=512,
    ops=Rounds(6, 5), parts=Rounds(1, 9), steps=Rounds(1, 9), round_seconds=0.1,
    trainer_rounds=6, trainer_steps=24, trainer_pairs=32, compiled=False,
)  # fmt: skip
GPU = Sizes(
    model="ViT-B-32-256", pairs=_PAIRS_ON_40_GB, precision="amp_bfloat16", dtype=torch.bfloat16,
    losses=tuple((pairs, 512) for pairs in (1024, 4096, 8192, 32768, 65536)),
    captions=100_000, pictures=8192,
    # in one go: compiled peers would have to be compiled again, and a GPU has no neighbours
    ops=Rounds(1, 31), parts=Rounds(1, 11), steps=Rounds(1, 11), round_seconds=0.1,
    trainer_rounds=3, trainer_steps=64, trainer_pairs=_PAIRS_ON_40_GB, compiled=True,
)  # fmt: skip


def sizes_for(device: torch.device, *, quick: bool) -> Sizes:
    """Those that fit: fewer pairs on a GPU of less than 40 GB, bf16 on a CPU that multiplies it."""
    if device.type != "cuda":
        chosen = QUICK if quick else CPU
        return replace(chosen, precision="amp_bfloat16") if _cpu_has_bf16() else chosen
    if quick:
        return replace(
            QUICK,
            precision="amp_bfloat16",
            dtype=torch.bfloat16,
            ops=Rounds(1, 31),
            parts=Rounds(1, 7),
        )
    share = min(1.0, torch.cuda.get_device_properties(device).total_memory / 39e9)
    pairs = max(32, int(_PAIRS_ON_40_GB * share) // 32 * 32)
    return replace(GPU, pairs=pairs, trainer_pairs=pairs)


def _cpu_has_bf16() -> bool:
    described = Path("/proc/cpuinfo")
    return described.exists() and "avx512_bf16" in described.read_text()
