"""Bytes that a call has allocated at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else each profile without a GPU is an error line
import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """At the peak, above what was there before. On a CPU summed from torch's own notes of what it allocates and
    frees, so that it is exact and says nothing of what the C library keeps.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        call()
    kineto = noted.profiler.kineto_results
    moves = [event for event in kineto.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(moves, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
