"""Both trainers as commands, on a model small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import whole_trainer
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
