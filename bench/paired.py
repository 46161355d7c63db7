"""Times of several ways to do one thing, taken in turns, so that what slows the machine slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Timing:
    """One way's rounds. Seconds and bytes."""

    seconds: list[float]
    peak_bytes: int | None  # allocated above what was there before; None where it is not counted

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_once(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call; on a GPU between two of its own events."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def alternate(
    ways: dict[str, Callable[[], None]], device: torch.device, rounds: int = 7, warm_up: int = 2
) -> dict[str, Timing | str]:
    """The timing of each way, or why it has none: it ran out of memory, or failed.

    Each round runs every way once. A way that fails in its warm-up takes no further part.
    """
    results: dict[str, Timing | str] = {}
    for name, call in ways.items():
        try:
            results[name] = Timing([], _peak(call, device, warm_up))
        except torch.OutOfMemoryError:
            results[name] = "out of memory"
        except Exception as error:  # a peer may fail in any way; the others go on
            results[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for _ in range(rounds):
        for name, timing in results.items():
            if isinstance(timing, Timing):
                timing.seconds.append(time_once(ways[name], device))
    return results


def _peak(call: Callable[[], None], device: torch.device, warm_up: int) -> int | None:
    for _ in range(warm_up):
        call()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ratio(of: Timing, to: Timing) -> float:
    """How many times as fast `to` is as `of`: the median of paired ratios."""
    return statistics.median(a / b for a, b in zip(of.seconds, to.seconds, strict=True))
