"""scripts/gpu_check.sh at toy size, its kernels in Triton's interpreter: ended after every part, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu_parts import parts
from bench.paired import Timing, alternate, ratio

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def gpu_check(out: Path, *options: str) -> subprocess.Popen[str]:
    # pytest-benchmark times nothing where it sees pytest-xdist, of which these tests may be a worker
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.Popen(
        [str(ROOT / "scripts" / "gpu_check.sh"), "--out", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**environment, "PYTHON": sys.executable},
    )  # fmt: skip


def done(state: Path) -> int:
    return len(json.loads(state.read_text())) if state.exists() else 0


def running(out: Path) -> list[bytes]:
    """Commands of live processes that name `out`."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended since it was listed
            found.append(command.read_bytes())
    return [each for each in found if os.fsencode(out) in each]


@pytest.mark.slow
def test_a_toy_run_that_is_ended_after_each_part_goes_on_and_checks_and_times_everything(
    tmp_path: Path,
) -> None:
    state = tmp_path / "parts.json"
    names = [part.name for part in parts(tmp_path, 120, toy=True)]
    for number in range(1, len(names)):
        run = gpu_check(tmp_path, "--toy", "--seconds", "120")
        while run.poll() is None and done(state) < number:
            time.sleep(0.1)
        if number % 2:  # by a scheduler, or with everything at once
            run.send_signal(signal.SIGTERM)
        else:
            os.killpg(run.pid, signal.SIGKILL)
        said, _ = run.communicate(timeout=60)
        until = time.monotonic() + 10
        while left := running(tmp_path):
            assert time.monotonic() < until, left
            time.sleep(0.1)
        assert run.returncode == (128 + signal.SIGTERM if number % 2 else -signal.SIGKILL), said
        assert [name for name in names if f"== {name}: done before" in said] == names[: number - 1]
    last = gpu_check(tmp_path, "--toy", "--seconds", "120")
    shown, _ = last.communicate(timeout=900)
    assert last.returncode == 0, shown
    summary = shown[shown.index("== summary") :].splitlines()
    assert len(summary) == 10
    assert summary[-1] == "every result that was checked is right"
    assert all(" done " in line for line in summary[1:-1]), shown

    correctness = json.loads((tmp_path / "loss_correctness.json").read_text())
    assert len({(case["loss"], case["dtype"]) for case in correctness["cases"]}) == 6
    assert not any(case["wrong"] for case in correctness["cases"])
    kernels = json.loads((tmp_path / "kernels_on_device.json").read_text())["cases"]
    assert len(kernels) == 18
    assert all(case["right"] for case in kernels)
    tiles = json.loads((tmp_path / "loss_tiles.json").read_text())["cases"]
    assert [len(case["ways"]) for case in tiles] == [3, 3, 3]  # the table's and both candidates
    steps = json.loads((tmp_path / "step_on_device.json").read_text())["cases"]
    assert len(steps) == 3
    for case in steps:
        assert case["ways"]["fastclip"]["samples_per_second"] > 0
        assert case["ways"]["open_clip"]["fastclip_is_times_as_fast"] > 0
    for case in json.loads((tmp_path / "loss_speed.json").read_text())["cases"]:
        assert case["gemm_flops"] > 0
        assert case["ways"]["open_clip"]["median"] > 0
        # what is not here is named
        assert set(case["missing"]) | set(case["ways"]) >= {"fastclip", "open_clip, compiled"}


def test_a_way_that_fails_is_named_and_the_others_go_on() -> None:
    def broken() -> None:
        raise RuntimeError("no such kernel")

    found = alternate({"broken": broken, "fine": lambda: None}, CPU, rounds=3)
    assert found["broken"] == "failed: RuntimeError: no such kernel"
    assert isinstance(found["fine"], Timing)
    assert len(found["fine"].seconds) == 3


def test_a_ratio_is_of_pairs() -> None:
    slow, fast = Timing([4.0, 40.0, 6.0], None), Timing([2.0, 10.0, 2.0], None)
    assert ratio(slow, fast) == 3.0
