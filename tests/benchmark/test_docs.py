"""The commands of docs/evaluate.md, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fastclip.benchmark.suite_sets import datacomp_sets
from fastclip.cli.main import main
from tests.benchmark import miniature

PAGE = Path(__file__).resolve().parents[2] / "docs/evaluate.md"


def test_every_command_runs(hub, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hub").symlink_to(hub)
    miniature.labelled(Path("birds"), rng)
    miniature.labelled(Path("birds"), rng, split="train", count=64)
    miniature.captioned(Path("views"), rng)
    miniature.labelled(Path("evalsets") / datacomp_sets()[0].folder, rng)
    Path("val2014").mkdir()
    Path("val2014/1.png").write_bytes(miniature.encoded(miniature.picture(rng)))
    miniature.save_json(Path("coco.annotations"), [{"image": "1.png", "caption": "an owl"}])
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "fastclip"
        assert main([*words, "--workers", "0"]) == 0, command
        assert Path(words[words.index("--out") + 1]).exists()
