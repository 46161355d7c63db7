"""Each mistake is one line on stderr with the status of its kind, and leaves no result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastclip.benchmark.words import read_classnames
from fastclip.cli.main import main
from tests.benchmark import miniature
from tests.benchmark.tiny_hub import CONFIG


def line_of(argv: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["eval", *argv]) == status
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error:" in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def blank_class(folder: Path) -> None:
    (folder / "classnames.txt").write_text("owl\n\nmap\ndrum\nsail\nkite\n")


def no_classnames(folder: Path) -> None:
    (folder / "classnames.txt").unlink()


def too_few_classes(folder: Path) -> None:
    (folder / "classnames.txt").write_text("owl\n")


def no_place_in_template(folder: Path) -> None:
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\na photo\n")


def missing_shard(folder: Path) -> None:
    (folder / "test/1.tar").unlink()


def cut_shard(folder: Path) -> None:
    whole = (folder / "test/1.tar").read_bytes()
    (folder / "test/1.tar").write_bytes(whole[:9_000])


def no_label(folder: Path) -> None:
    miniature.write_shards(folder, "test", [{"png": b"x", "txt": b"a cat"}], shards=1)


def no_shards(folder: Path) -> None:
    shutil.rmtree(folder / "test")


def odd_count(folder: Path) -> None:
    (folder / "test/nshards.txt").write_text("two\n")


def nothing_decodes(folder: Path) -> None:
    miniature.write_shards(folder, "test", [{"png": b"x", "cls": b"0"}] * 3, shards=1)


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (blank_class, 65, "classnames.txt: line 2 is blank"),
        (no_classnames, 66, "classnames.txt: no such file"),
        (too_few_classes, 65, "classnames.txt has 1 names"),
        (no_place_in_template, 65, "line 2: no {c}"),
        (missing_shard, 66, "1.tar: no such file, though"),
        (cut_shard, 65, "1.tar: not a whole"),
        (no_label, 65, "s0000000 has no .cls member"),
        (no_shards, 65, "neither shards (test/0.tar, ...) nor class folders"),
        (odd_count, 65, "nshards.txt: one number was expected"),
        (nothing_decodes, 65, "nothing to evaluate on (unreadable picture: 3)"),
    ],
)
def test_data(spoil: Callable[[Path], None], status: int, said: str, hub, rng, tmp_path, capsys):
    data, out = tmp_path / "birds", tmp_path / "r.json"
    miniature.labelled(data, rng)
    spoil(data)
    argv = ["--checkpoint", str(hub), "--task", "zeroshot", "--data", str(data), "--workers", "0"]
    assert said in line_of([*argv, "--out", str(out)], status, capsys)
    assert not out.exists()


def test_two_classes_of_one_name_are_a_warning(tmp_path, caplog):
    (tmp_path / "names.txt").write_text("crane\nowl\ncrane\n")
    assert read_classnames(tmp_path / "names.txt") == ("crane", "owl", "crane")
    assert "lines 1 and 3 are the same class name, 'crane'" in caplog.text


def other_architecture(hub: Path) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (hub / "open_clip_config.json").write_text(json.dumps(config))


def nan_weights(hub: Path) -> None:
    state = load_file(hub / "open_clip_model.safetensors")
    state["visual.proj"][3, 4] = torch.nan
    save_file(state, hub / "open_clip_model.safetensors")


def no_weights(hub: Path) -> None:
    (hub / "open_clip_model.safetensors").unlink()


def no_config(hub: Path) -> None:
    (hub / "open_clip_config.json").unlink()


def cut_weights(hub: Path) -> None:
    file = hub / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (other_architecture, 65, "does not fit the model: visual.transformer.resblocks.2."),
        (nan_weights, 65, "visual.proj has values that are infinite or not a number"),
        (no_weights, 2, "pretrained weights are required"),
        (no_config, 66, "a folder without open_clip_config.json"),
        (cut_weights, 65, "not a whole safetensors file"),
    ],
)
def test_checkpoints(
    spoil: Callable[[Path], None], status: int, said: str, hub, rng, tmp_path, capsys
):
    miniature.labelled(tmp_path / "birds", rng)
    spoiled = shutil.copytree(hub, tmp_path / "spoiled")
    spoil(spoiled)
    argv = ["--checkpoint", str(spoiled), "--task", "zeroshot", "--data", str(tmp_path / "birds")]
    assert said in line_of([*argv, "--out", str(tmp_path / "r.json")], status, capsys)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--data x --checkpoint c", 2, "--task is missing"),
        ("--task zero --data x --checkpoint c", 2, "--task 'zero': choose zeroshot"),
        ("--task zeroshot --checkpoint c", 2, "--data is missing"),
        ("--task zeroshot --data x", 2, "--model and --checkpoint"),
        ("--task zeroshot --data x --model ViT-B-32", 66, "--data x: no such file or folder"),
        ("--task zeroshot --data . --checkpoint c --batch-size 0", 2, "--batch-size 0"),
        ("--task zeroshot --data . --checkpoint c --precision fp8", 2, "--precision 'fp8'"),
        ("--task zeroshot --data . --checkpoint c --annotations a", 2, "--annotations"),
        ("--suite vtab --data-root . --checkpoint c", 2, "--suite 'vtab': choose datacomp"),
        ("--suite datacomp --checkpoint c", 2, "--suite needs --data-root"),
        ("--suite datacomp --data-root . --task zeroshot --checkpoint c", 2, "leave out --task"),
        ("--suite datacomp --data-root nowhere --checkpoint c", 66, "nowhere: no such folder"),
        ("--wrong", 2, "unrecognized arguments: --wrong"),
    ],
)
def test_flags(words: str, status: int, said: str, capsys):
    assert said in line_of(words.split(), status, capsys)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (
            "https://user:key@host/val.tar?token=1",
            2,
            "--data https://host/val.tar: evaluation reads",
        ),
        ("pipe:cat val.tar", 2, "copy the shards here first"),
        ("val-{0..3}.tar", 66, "val-0.tar (and 3 more): no such file"),
        ("test/{0..2}.tar", 66, "test/2.tar: no such file"),
        ("test/{0..1.tar", 2, "--data test/{0..1.tar"),
        ("page.html", 65, "page.html: not a whole, uncompressed tar file"),
        ("plain", 65, "--data plain: no shards (test/0.tar, ... or *.tar) in it"),
        ("labels.tar", 65, "nothing to evaluate on (no caption: 3)"),
    ],
)
def test_shards_for_retrieval(
    data: str, status: int, said: str, rng, tmp_path, monkeypatch, capsys
):
    """Told before a model is looked for."""
    miniature.captioned(tmp_path, rng)
    miniature.labelled(tmp_path / "birds", rng, count=6)
    (tmp_path / "labels.tar").symlink_to(tmp_path / "birds/test/0.tar")
    (tmp_path / "plain").mkdir()
    (tmp_path / "page.html").write_text("<html>" * 200)
    monkeypatch.chdir(tmp_path)
    argv = ["--checkpoint", "nowhere", "--task", "retrieval", "--data", data]
    assert said in line_of(argv, status, capsys)


def test_a_model_without_weights(rng, tmp_path, capsys):
    miniature.labelled(tmp_path / "birds", rng)
    data = ["--task", "zeroshot", "--data", str(tmp_path / "birds")]
    for model, status, said in (
        (["--model", "ViT-B-32"], 2, "ViT-B-32 by itself has random weights"),
        (["--checkpoint", "gone/epoch_3.pt", "--model", "ViT-B-32"], 66, "no such file"),
    ):
        argv = [*model, *data, "--out", str(tmp_path / "r.json")]
        assert said in line_of(argv, status, capsys)


def test_a_place_that_cannot_be_written_to(hub, rng, tmp_path, capsys):
    miniature.labelled(tmp_path / "birds", rng)
    (tmp_path / "file").write_text("")
    argv = ["--checkpoint", str(hub), "--task", "zeroshot", "--data", str(tmp_path / "birds")]
    out = tmp_path / "file" / "r.json"
    assert str(out.parent) in line_of([*argv, "--out", str(out), "--workers", "0"], 74, capsys)
