"""Which tiles are fastest for the losses' kernels on this device: measured beside what the table chooses.

    python -m bench.loss_tiles --out FOLDER [--toy]

`fastclip_kernels/loss/triton_table.py` chooses by a cost model. For each kernel, width and dtype this times a loss,
forward and backward, with each candidate for that kernel and the table's choice for the others. A candidate that gives
another result is named and not timed. Writes loss_tiles.json, from which the table is to be corrected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from bench.correctness import ALLOWANCE, wrongs
from bench.loss_call import SPECIFICATION, leaves, results_of
from bench.machine import machine, write
from bench.paired import Timing, alternate, ratio, reason
from fastclip_kernels import clip_loss, siglip_loss
from fastclip_kernels.backend import interpreting
from fastclip_kernels.loss import triton_chunks
from fastclip_kernels.loss.triton_table import Kernel, Launch, launch_for

TABLE = "table"
_LOSSES: dict[str, Callable[..., Tensor]] = {"clip": clip_loss, "siglip": siglip_loss}
CANDIDATES = [
    Launch(128, 128, 64, warps=8, stages=3),
    Launch(128, 128, 64, warps=8, stages=4),
    Launch(128, 128, 64, warps=4, stages=3),
    Launch(128, 128, 32, warps=8, stages=4),
    Launch(256, 128, 64, warps=8, stages=3),
    Launch(128, 256, 64, warps=8, stages=3),
    Launch(128, 64, 64, warps=8, stages=3),
    Launch(64, 128, 64, warps=4, stages=3),
    Launch(128, 64, 32, warps=8, stages=4),
]
_TOY = [Launch(32, 32, 32, warps=4, stages=1), Launch(64, 32, 32, warps=4, stages=1)]


def name_of(launch: Launch) -> str:
    return (
        f"{launch.block_m}x{launch.block_k}x{launch.block_d}, {launch.warps} warps, "
        f"{launch.stages} stages"
    )


def with_launch(kernel: Kernel, launch: Launch | None, call: Callable[[], Any]) -> Any:
    """`call()` while that kernel takes that launch; None: the table's."""

    def chosen(dtype: torch.dtype, width: int, **about: Any) -> Launch:
        same = launch is not None and about["kernel"] == kernel
        return launch if same else launch_for(dtype, width, **about)  # type: ignore[return-value]

    before = triton_chunks.launch_for
    triton_chunks.launch_for = chosen
    try:
        return call()
    finally:
        triton_chunks.launch_for = before


def compare(
    kernel: Kernel, rows: int, width: int, dtype: torch.dtype, device: torch.device, *, toy: bool
) -> dict[str, Any]:
    """Milliseconds of each candidate, or why it has none."""
    kind = "siglip" if kernel == "sigmoid" else "clip"
    loss, inputs = _LOSSES[kind], leaves(rows, width, dtype, device, seed=rows)

    def step() -> dict[str, Tensor]:
        return results_of(lambda *given: loss(*given, backend="triton"), inputs)

    few = leaves(min(rows, 512), width, dtype, device, seed=width)
    truth = results_of(SPECIFICATION[kind], [x.detach().double().requires_grad_() for x in few])
    usual = results_of(lambda *given: loss(*given, backend="triton"), few)
    ways: dict[str, Callable[[], Any]] = {TABLE: partial(with_launch, kernel, None, step)}
    refused: dict[str, str] = {}
    for launch in _TOY if toy else CANDIDATES:
        name = name_of(launch)
        if width % launch.block_d:
            continue
        try:
            got = with_launch(
                kernel, launch, lambda: results_of(lambda *g: loss(*g, backend="triton"), few)
            )
        except Exception as error:  # too much shared memory, or whatever the compiler says
            refused[name] = reason(error)
            continue
        found = wrongs(got, truth, usual, ALLOWANCE[dtype])
        if found:
            refused[name] = f"wrong: {'; '.join(found)}"
        else:
            ways[name] = partial(with_launch, kernel, launch, step)
    timings = alternate(ways, device, rounds=2 if toy else 9, warm_up=1 if toy else 3)
    table = timings[TABLE]
    of_table = {
        name: {
            "milliseconds": 1e3 * timing.median,
            "table_takes_times_as_long": ratio(table, timing),
        }
        for name, timing in timings.items()
        if isinstance(timing, Timing) and isinstance(table, Timing)
    }
    refused |= {name: timing for name, timing in timings.items() if isinstance(timing, str)}
    best = max(of_table, key=lambda name: of_table[name]["table_takes_times_as_long"], default=None)
    shown = "nothing ran" if best is None else f"best {best}"
    if best not in (None, TABLE):
        shown += f", {of_table[best]['table_takes_times_as_long']:.2f} times as fast as the table's"
    print(f"{kernel} {dtype} {rows}x{width}: {shown}", flush=True)
    return {
        "kernel": kernel, "dtype": str(dtype), "rows": rows, "width": width, "best": best,
        "table": name_of(launch_for(dtype, width, kernel=kernel, keys=rows)),
        "ways": of_table, "refused": refused,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for loss_tiles.json")
    parser.add_argument("--toy", action="store_true", help="a small size, for any machine")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not interpreting():
        print("there is no GPU here, and TRITON_INTERPRET is not set", file=sys.stderr)
        return 2
    sizes = [(96, 64)] if options.toy else [(8192, 512), (8192, 768), (32768, 512)]
    dtypes = [torch.float16] if options.toy else [torch.bfloat16, torch.float16]
    cases = []
    for rows, width in sizes:
        for dtype in dtypes:
            for kernel in get_args(Kernel):
                cases.append(compare(kernel, rows, width, dtype, device, toy=options.toy))
                write(options.out / "loss_tiles.json", {"machine": machine(device), "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
