"""The losses on one device: are they right, and how fast are they beside their peers?

    python -m bench.loss_on_device --out results [--toy | --cpu] [--only right|fast]

Writes loss_correctness.json, then loss_speed.json after every size, smallest first, so that a run that
is cut short leaves what it has. Exit status 1 where a result of ours is wrong; speed fails nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import gemm_rate
from bench.correctness import ALLOWANCE
from bench.loss_call import BIAS, SCALE, SPECIFICATION, forward_and_backward, leaves, results_of
from bench.loss_peers import Loss, peers
from bench.machine import machine, write
from bench.paired import Timing, alternate, ratio, reason
from fastclip_kernels.testing import SCALAR_FLOOR, error_against_fp64, feature_floor


def errors(
    kind: str,
    losses: dict[str, Loss],
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, dict[str, float] | str]:
    """Each loss's relative errors against float64 on the same rounded inputs, or why it failed."""
    inputs = leaves(rows, width, dtype, device, seed=rows + width)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    truth = results_of(SPECIFICATION[kind], wide)
    found: dict[str, dict[str, float] | str] = {}
    for name, loss in losses.items():
        try:
            got = results_of(loss, inputs)
        except Exception as error:  # a peer may fail in any way
            found[name] = reason(error)
            continue
        found[name] = {
            what: error_against_fp64(
                value, truth[what], feature_floor(SCALE, rows) if value.ndim else SCALAR_FLOOR
            )
            for what, value in got.items()
        }
    return found


def check(out: Path, device: torch.device, sizes: list[tuple[int, int]]) -> bool:
    """Whether every error of ours is at most twice open_clip's, plus rounding; all errors to a file.

    A logit's rounding error is the relative error of its probability, and open_clip may escape it by luck.
    """
    rounding = 2**-24 * (SCALE + abs(BIAS))  # half a unit in the last place of the largest logit
    good, cases = True, []
    for kind in SPECIFICATION:
        losses, missing = peers(kind, compiled=False)
        # the rule is about the reference's error; where it is not installed, about that of its formula
        losses.setdefault("open_clip", SPECIFICATION[kind])
        for dtype in ALLOWANCE:
            for rows, width in sizes:
                found = errors(kind, losses, rows, width, dtype, device)
                reference = found.get("open_clip", {})
                bad = []
                for name in ("fastclip", "fastclip, torch form"):
                    ours = found[name]
                    if isinstance(ours, str):
                        bad.append(f"{name}: {ours}")
                        continue
                    for what, error in ours.items():
                        theirs = reference.get(what, 0.0) if isinstance(reference, dict) else 0.0
                        if not error <= 2 * theirs + ALLOWANCE[dtype] + rounding:
                            bad.append(f"{name}: {what}: {error:.2e}, open_clip {theirs:.2e}")
                good &= not bad
                case = {"loss": kind, "dtype": str(dtype), "rows": rows, "width": width}
                cases.append({**case, "errors": found, "wrong": bad, "missing": missing})
                print(f"{kind} {dtype} {rows}x{width}: {'; '.join(bad) or 'right'}", flush=True)
                write(out / "loss_correctness.json", {"machine": machine(device), "cases": cases})
    return good


def compare_speed(
    out: Path,
    device: torch.device,
    sizes: list[tuple[int, int]],
    dtype: torch.dtype,
    seconds: float,
    *,
    compiled: bool,
    rounds: int = 7,
    cases: list[dict[str, Any]],
) -> None:
    """Forward + backward of every loss at every size, smallest first, for at most so many seconds; added to `cases`,
    all of which are written after each.
    """
    started = time.monotonic()
    side = 8192 if device.type == "cuda" else 1024
    ceiling = gemm_rate([(side, side, side)], device, dtype)
    for rows, width in sizes:
        for kind in SPECIFICATION:
            if time.monotonic() - started > seconds:
                print(f"{kind} {rows}x{width}: not run, out of time", flush=True)
                continue
            torch._dynamo.reset()
            losses, missing = peers(kind, compiled=compiled)
            inputs = leaves(rows, width, dtype, device, seed=rows)
            ways = {name: forward_and_backward(loss, inputs) for name, loss in losses.items()}
            timings = alternate(ways, device, rounds)
            ours = timings["fastclip"]
            # what the mathematics needs: one GEMM forward and two backward
            useful = 3 * 2 * rows * rows * width
            rows_of_table: dict[str, dict[str, Any]] = {}
            for name, timing in timings.items():
                if isinstance(timing, str):
                    rows_of_table[name] = {"error": timing}
                    continue
                rows_of_table[name] = {
                    "seconds": timing.seconds,
                    "median": timing.median,
                    "peak_bytes": timing.peak_bytes,
                    "of_gemm_rate": useful / timing.median / ceiling,
                    "fastclip_is_times_as_fast": ratio(timing, ours)
                    if isinstance(ours, Timing)
                    else None,
                }
                faster = rows_of_table[name]["fastclip_is_times_as_fast"]
                said = "" if faster is None else f", fastclip {faster:.2f} times as fast"
                print(
                    f"{kind} {dtype} {rows}x{width} {name}: {timing.median * 1e3:.2f} ms{said}",
                    flush=True,
                )
            cases.append({"loss": kind, "rows": rows, "width": width, "dtype": str(dtype),
                          "gemm_flops": ceiling, "ways": rows_of_table, "missing": missing})  # fmt: skip
            write(out / "loss_speed.json", {"machine": machine(device), "cases": cases})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--toy", action="store_true", help="a few small sizes, for any machine")
    parser.add_argument("--cpu", action="store_true", help="a CPU's sizes, 64 to 16,384 pairs")
    parser.add_argument("--only", choices=("right", "fast"), help="one of the two questions")
    parser.add_argument(
        "--seconds", type=float, default=240, help="time for each dtype's speed part"
    )
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    if not (on_gpu or options.toy or options.cpu):
        print("there is no GPU here: pass --toy for a small run on the CPU", file=sys.stderr)
        return 2
    exact = [(1, 64), (67, 80), (129, 64)]
    fast = [(256, 64)]
    dtypes = [torch.bfloat16 if on_gpu else torch.float32]
    if not options.toy:
        exact += [(1031, 333), (4096, 512)] + ([(8192, 768)] if on_gpu else [])
        fast = [(rows, width) for rows in (1024, 8192, 32768, 65536) for width in (512, 768)]
    if options.cpu:
        fast = [(rows, 512) for rows in (64, 128, 256, 512, 4096, 8192, 16384)]
        dtypes = [torch.float32, torch.bfloat16]
    good = options.only == "fast" or check(options.out, device, exact)
    if options.only == "right":
        dtypes = []
    cases: list[dict[str, Any]] = []
    for dtype in dtypes:
        compare_speed(
            options.out, device, fast, dtype, options.seconds,
            compiled=not options.toy, rounds=5 if options.cpu else 7, cases=cases,
        )  # fmt: skip
    if options.only != "fast":
        print("every result of ours is right" if good else "SOME RESULTS OF OURS ARE WRONG")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
