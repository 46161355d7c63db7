"""scripts/gpu_check.sh at toy size, its kernels in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.paired import Timing, alternate, ratio

ROOT = Path(__file__).resolve().parents[2]


def gpu_check(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu_check.sh"), "--out", str(out), *options],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip


def test_a_toy_run_checks_and_times_every_loss(tmp_path):
    run = gpu_check(tmp_path, "--toy")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all parts done, every result right" in run.stdout
    correctness = json.loads((tmp_path / "loss_correctness.json").read_text())
    cases = {(case["loss"], case["dtype"]) for case in correctness["cases"]}
    assert len(cases) == 6
    assert not any(case["wrong"] for case in correctness["cases"])
    kernels = json.loads((tmp_path / "kernels_on_device.json").read_text())["cases"]
    assert len(kernels) == 18
    assert all(case["right"] for case in kernels)
    steps = json.loads((tmp_path / "step_on_device.json").read_text())["cases"]
    assert len(steps) == 3
    for case in steps:
        assert case["ways"]["fastclip"]["samples_per_second"] > 0
        assert case["ways"]["open_clip"]["fastclip_is_times_as_fast"] > 0
    speed = json.loads((tmp_path / "loss_speed.json").read_text())
    for case in speed["cases"]:
        assert case["gemm_flops"] > 0
        assert case["ways"]["open_clip"]["median"] > 0
        # what is not here is named
        assert set(case["missing"]) | set(case["ways"]) >= {"fastclip", "open_clip, compiled"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    run = gpu_check(tmp_path)
    assert run.returncode == 1
    assert run.stderr.count("there is no GPU here: pass --toy") == 3
    assert "FAILED: -m bench.loss_on_device" in run.stdout


def test_a_way_that_fails_is_named_and_the_others_go_on():
    def broken() -> None:
        raise RuntimeError("no such kernel")

    found = alternate({"broken": broken, "fine": lambda: None}, torch.device("cpu"), rounds=3)
    assert found["broken"] == "failed: RuntimeError: no such kernel"
    assert isinstance(found["fine"], Timing)
    assert len(found["fine"].seconds) == 3


def test_a_ratio_is_of_pairs():
    slow, fast = Timing([4.0, 40.0, 6.0], None), Timing([2.0, 10.0, 2.0], None)
    assert ratio(slow, fast) == 3.0
