"""`--profile N`: what is written, that it is of N steps, and that the run is the same with it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from fastclip.cli.main import main
from fastclip.train.profiling import PROFILER_WARM_UP, WARM_UP, steps_to_profile
from tests.e2e.tiny_run import arguments, finish, losses

STEPS = 4


def trace_of(run: Path) -> dict[str, list[float]]:
    """Durations in milliseconds by name."""
    found = defaultdict(list)
    for event in json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]:
        if event.get("ph") == "X" and event.get("cat") != "gpu_user_annotation":
            found[event["name"].partition("#")[0]].append(event["dur"] / 1e3)
    return found


def parts_of(run: Path) -> tuple[dict[str, Any], dict[str, float]]:
    record = json.loads((run / "profile" / "parts.json").read_text())
    return record, {part["name"]: part["host_ms"] for part in record["parts"]}


@pytest.mark.parametrize("accum", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_profile_is_of_n_steps_and_changes_nothing(accum: str, tmp_path: Path) -> None:
    # 12 steps, and one epoch: at its end a wait for data brings none
    samples = str(12 * 8 * int(accum))
    words = ("--accum-freq", accum, "--batch-size", "8", "--epochs", "1", "--save-frequency", "0")
    words = (*words, "--train-num-samples", samples)
    assert main(arguments(tmp_path, "plain", *words)) == 0
    assert main(arguments(tmp_path, "profiled", *words, "--profile", str(STEPS))) == 0
    runs = tmp_path / "logs"
    assert losses(runs / "profiled") == losses(runs / "plain")
    assert not (runs / "plain" / "profile").exists()

    trace, (record, parts) = trace_of(runs / "profiled"), parts_of(runs / "profiled")
    assert record["steps"] == len(trace["ProfilerStep"]) == STEPS
    micro = STEPS * int(accum)
    # with accumulation each micro-batch goes through the towers twice: for the loss, and for its gradient
    forwards = micro if accum == "1" else 2 * micro
    assert len(trace["fastclip: data wait"]) == micro
    assert len(trace["fastclip: image tower"]) == len(trace["fastclip: text tower"]) == forwards
    for name in ("loss", "backward", "optimizer"):
        assert len(trace[f"fastclip: {name}"]) == STEPS
    for name in ("data wait", "image tower", "text tower", "loss", "optimizer"):
        total = sum(trace[f"fastclip: {name}"])
        assert parts[name] == pytest.approx(total / STEPS, rel=1e-3, abs=1e-3)
    assert sum(parts.values()) == pytest.approx(record["step_ms"])
    log = (runs / "profiled" / "out.log").read_text()
    assert f"profile of {STEPS} steps:\npart " in log
    assert str(runs / "profiled" / "profile") in log


@pytest.mark.slow
def test_all_reduce_of_two_processes(tmp_path: Path) -> None:
    words = ("--batch-size", "8", "--profile", "3", "--train-num-samples", "192")
    done = finish(arguments(tmp_path, "run", *words), processes=2)
    assert done.returncode == 0, done.stderr
    trace, (record, parts) = trace_of(tmp_path / "logs/run"), parts_of(tmp_path / "logs/run")
    assert parts["all-reduce"] == pytest.approx(sum(trace["gloo:all_reduce"]) / 3, rel=1e-3)
    del parts["all-reduce"]
    assert sum(parts.values()) == pytest.approx(record["step_ms"])


@pytest.mark.parametrize(("steps_of_run", "profiled"), [(100, 4), (9, 4), (7, 2), (5, 0), (1, 0)])
def test_short_runs(steps_of_run: int, profiled: int, caplog: pytest.LogCaptureFixture) -> None:
    assert WARM_UP + PROFILER_WARM_UP == 5
    assert steps_to_profile(STEPS, steps_of_run) == profiled
    assert bool(caplog.records) == (profiled < STEPS)


def test_a_profile_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    (run / "profile").write_text("a file where a folder is wanted")
    words = ("--epochs", "2", "--save-frequency", "0", "--profile", "2")
    assert main(arguments(tmp_path, "run", *words)) == 0
    assert "the profile cannot be written" in (run / "out.log").read_text()
