"""The parts of scripts/gpu_check.sh: kept, resumed, ended in time, and what their failures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_kit
from bench.gpu_parts import Part
from bench.gpu_parts import parts as real_parts

WRITE = "import json, sys; json.dump({}, open(sys.argv[1], 'w')); print('ran')"
# the kernels' own part, with a kernel that gives one gradient 1.01 times too large
PLANTED = """
import sys, torch
import bench.kernels_on_device as part

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.view_as(x)
    @staticmethod
    def backward(ctx, gradient): return 1.01 * gradient

right = part.patch_embed
part.patch_embed = lambda pixels, weight, *a, **o: right(pixels, Scaled.apply(weight), *a, **o)
part.ALLOWANCE = {torch.float32: 1e-6}
sys.exit(part.main(["--toy", "--out", sys.argv[1]]))
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """What the kit runs, to be filled."""
    chosen: list[Part] = []
    monkeypatch.setattr(gpu_kit, "parts", lambda *_, **__: chosen)
    # what it sets for the process it runs in
    monkeypatch.setattr(gpu_kit.signal, "signal", lambda *_: None)
    return chosen


def part(name: str, out: Path, code: str = WRITE, **more: Any) -> Part:
    file = str(out / f"{name}.json")
    given = {"seconds": 60.0, "checks": False, "interprets": False, "headline": lambda _: "well"}
    return Part(name, ["-c", code, file], file, **{**given, **more})


def run(out: Path, *words: str) -> int:
    return gpu_kit.main(["--toy", "--out", str(out), *words])


def test_what_is_done_is_kept(
    tmp_path: Path, parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    parts += [
        part("a", tmp_path),
        part("b", tmp_path, "import sys; sys.exit(3)"),
        part("c", tmp_path),
    ]
    assert run(tmp_path) == 0  # none of them checks results
    first = capsys.readouterr().out
    assert first.count("ran\n") == 2
    lines = first[first.index("== summary") :].splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["a", "done"],
        ["b", "failed"],
        ["c", "done"],
    ]

    (tmp_path / "c.json").write_text("{")  # as if it had been ended while it wrote
    run(tmp_path)
    second = capsys.readouterr().out
    assert "== a: done before" in second
    assert "== b\n" in second
    assert "== c\nran" in second
    run(tmp_path, "--again")
    assert "done before" not in capsys.readouterr().out

    parts[0] = part("a", tmp_path, WRITE + "  # other arguments")
    run(tmp_path)
    assert "== a\nran" in capsys.readouterr().out


def test_a_part_out_of_time_is_ended_and_the_others_run(
    tmp_path: Path, parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    hang = "import time; print('waiting', flush=True); time.sleep(1000)"
    parts += [part("a", tmp_path, hang, seconds=1.0), part("b", tmp_path)]
    assert run(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "out of time" in shown
    assert "ran" in shown
    # one that checks has not been found right then
    parts[0] = part("a", tmp_path, hang, seconds=1.0, checks=True)
    assert run(tmp_path) == 1
    assert "NOT RIGHT: a" in capsys.readouterr().out


def test_what_is_missing_is_said_and_is_not_wrong(
    tmp_path: Path, parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('no .venv-reference here'); sys.exit(69)"
    parts.append(part("trainer", tmp_path, code, checks=True))
    parts.append(part("suite", tmp_path, checks=True, needs=("pytest", "no_such_module")))
    assert run(tmp_path) == 0
    summary = capsys.readouterr().out.splitlines()[-3:-1]
    assert [line.split()[1] for line in summary] == ["missing", "missing"]
    assert summary[0].endswith("no .venv-reference here")
    assert summary[1].endswith("not installed: no_such_module")


def test_a_kernel_that_is_wrong_is_in_status_and_summary(
    tmp_path: Path, parts: list[Part], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-c", PLANTED, str(tmp_path)]
    parts += [
        Part("kernels right", words, "kernels_on_device.json", 300, True, True, lambda _: ""),
        part("losses", tmp_path),
    ]
    assert run(tmp_path) == 1
    shown = capsys.readouterr().out
    summary = shown[shown.index("== summary") :]
    assert "kernels right        wrong" in summary
    assert "NOT RIGHT: kernels right" in summary
    assert "losses               done" in summary
    cases = json.loads((tmp_path / "kernels_on_device.json").read_text())["cases"]
    assert [case["right"] for case in cases] == ["patch" not in case["case"] for case in cases]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_kit.main(["--out", str(tmp_path / "results")]) == 69
    assert (
        capsys.readouterr().err == "there is no GPU here: pass --toy for a small run on the CPU\n"
    )
    assert not (tmp_path / "results").exists()


def test_the_parts_are_python_modules_that_exist(tmp_path: Path) -> None:
    import importlib.util

    for toy in (False, True):
        found = real_parts(tmp_path, 10, toy=toy)
        assert len({each.result for each in found}) == len(found) == 8
        for each in found:
            assert each.words[0] == "-m"
            assert importlib.util.find_spec(each.words[1]), each.words
