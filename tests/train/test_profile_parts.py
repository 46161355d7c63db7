"""Times by part, from events whose sums can be done by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fastclip.train.profile_parts import summarise


def event(name: str, start: float, end: float, *kernels: tuple[str, float], on: str = "CPU") -> Any:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        device_type=SimpleNamespace(name=on),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )


# Two steps of 1 and 3 ms. A tower within backward is the tower's, as under --accum-freq.
EVENTS = [
    event("ProfilerStep*", 0, 1000),
    event("fastclip: data wait", 0, 100),
    event("fastclip: backward", 200, 700),
    event("fastclip: image tower", 300, 400),
    event("fastclip: optimizer", 700, 800),
    event("ProfilerStep*", 1000, 4000),
    event("fastclip: backward", 2000, 3000),
    # launched by autograd's own thread while the one that trains stands in backward
    event("aten::mm", 2100, 2110, ("gemm", 600.0)),
    event("aten::mm", 350, 360, ("gemm", 200.0)),
    event("aten::add", 1500, 1510, ("add", 40.0)),
    event("nccl:all_reduce", 2500, 2600, ("ncclDevKernel_AllReduce_Sum_f32", 800.0)),
    # the same ranges on the device's own time line
    event("fastclip: backward", 0, 9999, on="CUDA"),
    event("ProfilerStep*", 0, 9999, on="CUDA"),
]


def test_parts_on_a_gpu() -> None:
    found = summarise(EVENTS, on_gpu=True)
    assert (found.steps, found.step_ms) == (2, 2.0)
    host = {part.name: part.host_ms for part in found.parts}
    assert host == pytest.approx(
        {
            "data wait": 0.05,
            "image tower": 0.05,
            "backward": (0.4 + 1.0) / 2,
            "optimizer": 0.05,
            "other": (4.0 - 0.1 - 0.5 - 0.1 - 1.0) / 2,
            "all-reduce": 0.05,
        }
    )
    device = {part.name: part.device_ms for part in found.parts}
    assert device == pytest.approx(
        {
            "data wait": 0.0,
            "image tower": 0.1,
            "backward": 0.3,
            "optimizer": 0.0,
            "other": 0.02,
            "all-reduce": 0.4,
        }
    )
    assert sum(host.values()) - host["all-reduce"] == pytest.approx(found.step_ms)


def test_table_and_json() -> None:
    found = summarise(EVENTS, on_gpu=False)
    lines = found.table().splitlines()
    assert lines[0].split() == ["part", "host", "ms", "share"]
    assert lines[3].split() == ["backward", "0.70", "35.0%"]
    assert lines[-2].split() == ["step", "2.00"]
    record = json.loads(found.as_json())
    assert record["schema"] == 1
    assert record["parts"][0] == {"name": "data wait", "host_ms": 0.05, "device_ms": None}
    assert "device ms" in summarise(EVENTS, on_gpu=True).table()


def test_a_run_of_one_process_has_no_all_reduce() -> None:
    found = summarise(EVENTS[:5], on_gpu=False)
    assert [part.name for part in found.parts][-1] == "other"
    assert "*" not in found.table()
