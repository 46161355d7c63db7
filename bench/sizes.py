"""How large each part of `pytest bench/` is: for a laptop (`--quick`), a CPU, a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

MEAN_CAPTIONS = (12, 20, 40, 77)  # tokens; web alt-text has 15 to 25
_PAIRS_ON_40_GB = 896


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
    rounds: int  # of ops
    step_rounds: int  # of towers, step and loader
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
    rounds=31, step_rounds=7, round_seconds=0.02,
    trainer_rounds=3, trainer_steps=8, trainer_pairs=8, compiled=False,
)  # fmt: skip
CPU = Sizes(
    model="ViT-B-32-256", pairs=32, precision="fp32", dtype=torch.float32,
    losses=((256, 512), (1024, 512), (4096, 512)), captions=10_000, pictures=512,
    rounds=31, step_rounds=9, round_seconds=0.1,
    trainer_rounds=6, trainer_steps=24, trainer_pairs=32, compiled=False,
)  # fmt: skip
GPU = Sizes(
    model="ViT-B-32-256", pairs=_PAIRS_ON_40_GB, precision="amp_bfloat16", dtype=torch.bfloat16,
    losses=tuple((pairs, 512) for pairs in (1024, 4096, 8192, 32768, 65536)),
    captions=100_000, pictures=8192,
    rounds=31, step_rounds=11, round_seconds=0.1,
    trainer_rounds=3, trainer_steps=64, trainer_pairs=_PAIRS_ON_40_GB, compiled=True,
)  # fmt: skip


def sizes_for(device: torch.device, *, quick: bool) -> Sizes:
    """Those that fit: fewer pairs on a GPU of less than 40 GB, bf16 on a CPU that multiplies it."""
    if device.type != "cuda":
        chosen = QUICK if quick else CPU
        return replace(chosen, precision="amp_bfloat16") if _cpu_has_bf16() else chosen
    if quick:
        return replace(QUICK, precision="amp_bfloat16", dtype=torch.bfloat16)
    share = min(1.0, torch.cuda.get_device_properties(device).total_memory / 39e9)
    pairs = max(32, int(_PAIRS_ON_40_GB * share) // 32 * 32)
    return replace(GPU, pairs=pairs, trainer_pairs=pairs)


def _cpu_has_bf16() -> bool:
    described = Path("/proc/cpuinfo")
    return described.exists() and "avx512_bf16" in described.read_text()
