"""Both trainers as commands, on a model small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import reference_environment, whole_trainer
from bench.contest import Contest
from bench.rows import Ceilings, Row
from bench.sizes import QUICK
from bench.table import lines_of
from bench.test_whole_trainer import test_whole_trainer as bench_of_trainers
from bench.visits import Visits
from tests.e2e.tiny_run import model_folder


@pytest.mark.slow  # two trainers start
def test_both_trainers_run_and_are_compared(tmp_path: Path, capsys) -> None:
    model = model_folder(tmp_path / "model")
    words = [
        "--rounds",
        "1",
        "--steps",
        "6",
        "--warm-up",
        "2",
        "--batch-size",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert whole_trainer.main([*words, "--", "--model", model, "--device", "cpu"]) == 0
    assert "ratio: median" in capsys.readouterr().out
    (only,) = json.loads((tmp_path / "whole_trainer.json").read_text())["rounds"]
    for who in ("open_clip", "fastclip"):
        assert len(only[who]["seconds"]) == 4
        assert only[who]["peak_bytes"] > 1e8


def test_a_run_that_fails_is_shown(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such file here"):
        whole_trainer.run_once(
            ["/bin/sh", "-c", "echo no such file here; exit 3"], tmp_path / "out.log", 0
        )


def test_rounds_are_in_turns_and_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run_once(command: list[str], log: Path, warm_up: int) -> whole_trainer.Measured:
        who = log.parent.name.partition("-")[0]
        ran.append(who)
        return whole_trainer.Measured([{"open_clip": 3.0, "fastclip": 1.0}[who]], 0.1, 1 << 30)

    monkeypatch.setattr(whole_trainer, "run_once", run_once)
    monkeypatch.setattr(reference_environment, "is_there", lambda: True)
    rows: list[Row] = []
    bench_of_trainers(contest(rows))
    assert ran == ["open_clip", "fastclip", "fastclip", "open_clip", "open_clip", "fastclip"]
    assert rows[0]["ratios"]["open_clip"]["rounds"] == [3.0, 3.0, 3.0]

    monkeypatch.setattr(reference_environment, "is_there", lambda: False)
    ran.clear()
    bench_of_trainers(contest(rows))
    assert ran == ["fastclip"] * 3
    assert rows[1]["missing"] == {"open_clip": reference_environment.MISSING}
    assert any("missing open_clip: no .venv-reference" in line for line in lines_of(rows[1:], []))


def contest(rows: list[Row]) -> Contest:
    benchmark = SimpleNamespace(extra_info={}, pedantic=lambda call, rounds: call())
    return Contest(benchmark, torch.device("cpu"), QUICK, Ceilings(1e9, 1e9), rows, Visits(1))
