"""docs/dry-run.md shows what its command prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastclip.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "dry-run.md").read_text()


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, page = re.findall(
        r"```(?:bash)?\n(.*?)```", DOC.split("## A run on 24 nodes")[1], re.S
    )
    shards = tmp_path / "many-shards"
    shards.mkdir()
    for number in range(768):
        shard = ROOT / "fastclip" / "demo" / f"train-000{number % 4}.tar"
        (shards / f"{number:03}.tar").symlink_to(shard)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.split("fastclip train ")[1].replace("\\\n", " "))
    assert main(["train", *words]) == 0
    assert capsys.readouterr().out == page
