"""CLIP_benchmark 1.6.2 itself, on the same checkpoint and the same data, gives the same figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import clip_benchmark_command
from bench.benchmark_layout import write_digits
from fastclip.cli.main import main
from tests.benchmark import miniature

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    subprocess.run([ROOT / "scripts/clip_benchmark_env.sh"], check=True)


def theirs(hub: Path, data: Path, task: str, out: Path) -> dict[str, Any]:
    words = clip_benchmark_command.command(hub, data, task, out)
    done = subprocess.run(words, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def ours(hub: Path, data: Path, task: str, out: Path) -> dict[str, Any]:
    flags = f"eval --checkpoint {hub} --data {data} --task {task} --out {out} --workers 1"
    assert main(flags.split()) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 12])
def test_zero_shot(hub, rng, tmp_path, classes: int):
    miniature.labelled(tmp_path / "mini", rng, count=200, classes=classes)
    expected = theirs(hub, tmp_path / "mini", "zeroshot", tmp_path / "a.json")
    got = ours(hub, tmp_path / "mini", "zeroshot", tmp_path / "b.json")
    if classes < 5:
        assert np.isnan(expected["metrics"].pop("acc5"))  # which is no JSON: ours says null
        assert got["metrics"].pop("acc5") is None
    assert got["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    assert got["task"] == expected["task"]
    assert expected.keys() <= got.keys()


@pytest.mark.slow
def test_retrieval(hub, rng, tmp_path):
    miniature.captioned(tmp_path / "mini", rng, count=150)
    expected = theirs(hub, tmp_path / "mini", "retrieval", tmp_path / "a.json")
    got = ours(hub, tmp_path / "mini", "retrieval", tmp_path / "b.json")
    assert got["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)


@pytest.mark.slow
def test_linear_probe(hub, tmp_path):
    """To half a point."""
    write_digits(tmp_path / "mini", miniature.NOUNS[:10])
    expected = theirs(hub, tmp_path / "mini", "linear-probe", tmp_path / "a.json")["metrics"]
    got = ours(hub, tmp_path / "mini", "linear-probe", tmp_path / "b.json")["metrics"]
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, abs=0.005)
    assert got["lp_acc1"] > 0.2  # ten classes: something was learnt
