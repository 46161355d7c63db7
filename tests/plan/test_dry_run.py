"""`fastclip train --dry-run` as a user meets it: a page, nothing written, and one line where a run cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastclip.cli.main import main
from fastclip.data.epoch_plan import plan_shards
from tests.e2e.tiny_run import BATCH, SAMPLES, arguments

CLUSTER = ["--dry-run", "--nodes", "2", "--gpus-per-node", "2", "--gpu", "a100-80g"]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def value(page: str, label: str) -> str:
    """The second column of the line that begins with `label`."""
    (line,) = [each for each in page.split("\n") if each.startswith(f"  {label}  ")]
    return re.split(r" {2,}", line.strip())[1]


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path, "planned", *CLUSTER)
    before = files(tmp_path)
    assert main(words) == 0
    assert files(tmp_path) == before, "a dry run wrote something"
    page, errors = capsys.readouterr()
    assert errors == ""
    assert "on 2 nodes x 2 A100 SXM 80 GB = 4 ranks" in page
    epoch = plan_shards(SAMPLES, BATCH, world_size=4, workers=1)
    assert value(page, "samples a step") == str(4 * BATCH)
    assert value(page, "steps an epoch") == str(epoch.num_batches)
    assert value(page, "steps of the run") == str(3 * epoch.num_batches)
    assert value(page, "recomputed in backward") == "none"
    assert value(page, "limited by") == "host"  # a model of next to no size
    for section in ("Memory", "Communication", "Rates", "Time of a step", "The whole run"):
        body = page.split(f"\n{section}")[1].split("\n\n")[0]
        for line in body.strip().split("\n")[1:]:
            parts = re.split(r" {2,}", line.strip())
            told_without = parts[0] in ("fits", "loader")
            assert len(parts) == 3 or told_without, f"no source: {line!r}"


def test_more_nodes_send_more_and_take_longer_in_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []
    for nodes in ("1", "2"):
        words = arguments(tmp_path, "planned", *CLUSTER, "--nodes", nodes)
        assert main(words) == 0
        sent.append(float(value(capsys.readouterr().out, "sent by each rank").split()[0]))
    parameters = 4 * 1_747_169  # bytes; 2 (W - 1) / W of them, and features
    assert sent[0] == pytest.approx(parameters / 1e6, rel=0.01)
    assert sent[1] == pytest.approx(1.5 * parameters / 1e6, rel=0.01)


def test_a_resumed_run_has_less_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "epoch_2.pt"
    torch.save({"epoch": 2, "state_dict": {"logit_scale": torch.zeros(())}}, path)
    assert main(arguments(tmp_path, "planned", *CLUSTER, "--resume", str(path))) == 0
    line = next(each for each in capsys.readouterr().out.split("\n") if "steps of the run" in each)
    assert f"epochs 3 to 3, resumed from {path}" in line


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--gpu", "a100"], 2, "--gpu 'a100': no such chip; did you mean a100-40g or a100-80g?"),
        (["--gpu", "h100,/nowhere/rates.json"], 66, "/nowhere/rates.json: cannot be read"),
        (["--nodes", "0"], 2, "--nodes 0: must be from 1"),
        (["--nodes", "9"], 2, "--train-data has 4 shards for 18 processes"),
        (["--workers", "3"], 2, "--workers 3: 12 loader processes"),
        (["--train-data", "/nowhere/{000..099}.tar"], 66, "/nowhere/000.tar"),
        (["--resume", "/nowhere/epoch_1.pt"], 66, "/nowhere/epoch_1.pt"),
        (["--model", "RN50"], 2, "RN50 is one of open_clip's own models"),
        (["--model", "ViT-B-23"], 2, "ViT-B-32"),
        (["--accum-freq", "1000"], 2, "--accum-freq 1000"),
        (["--batch-size", "3000000", "--no-packed-text"], 2, "add --grad-checkpointing, or use a"),
        (["--logs", "/dev/null"], 74, "/dev/null is no folder"),
    ],
)
def test_what_cannot_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    says: str,
) -> None:
    given = arguments(tmp_path, "planned", *CLUSTER, *words)
    before = files(tmp_path)
    assert main(given) == status
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert files(tmp_path) == before


def test_a_chip_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "planned", "--dry-run", "--device", "cuda")) == 2
    assert "--dry-run needs --gpu" in capsys.readouterr().err
