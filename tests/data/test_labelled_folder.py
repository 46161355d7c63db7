"""A csv made of a folder of labelled pictures is what the trainer reads with its default columns."""

from __future__ import annotations

import pytest
from PIL import Image

from fastclip.cli.main import main
from fastclip.data.csv_source import read_rows

NAMES = ["red_fox/a.jpg", "red_fox/deep/b.PNG", 'map "of" Poland/c.jpg', "tab\tname/d.jpg"]


@pytest.fixture
def folder(tmp_path):
    for name in [*NAMES, "red_fox/notes.txt", "above.jpg"]:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png"):
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.touch()
    (tmp_path / "pictures/empty").mkdir()
    return tmp_path / "pictures"


def test_rows(folder, tmp_path, capsys):
    out = tmp_path / "train.csv"
    words = ["data", "csv", str(folder), "--out", str(out), "--template", "stamp: {}, used"]
    assert main(words) == 0
    assert "4 pictures of 3 labels" in capsys.readouterr().out
    rows = read_rows(
        str(out), separator="\t", image_key="filepath", caption_key="title", flag="--train-data"
    )
    labels = ["red fox", "red fox", 'map "of" Poland', "tab\tname"]
    expected = {
        (str(folder / n), f"stamp: {lab}, used") for n, lab in zip(NAMES, labels, strict=True)
    }
    assert {tuple(row) for row in rows} == expected


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["csv", "nowhere", "--out", "x.csv"], 66, "nowhere"),
        (["csv", "{folder}/empty", "--out", "x.csv"], 65, "FOLDER/LABEL"),
        (["csv", "{folder}", "--out", "x.csv", "--template", "none"], 2, "--template"),
        (["csv", "{folder}", "--out", "/nowhere/x.csv"], 74, "x.csv"),
        (["tar", "{folder}", "--out", "x.csv"], 2, "tar"),
        (["csv", "{folder}"], 2, "--out"),
    ],
)
def test_bad_use(folder, capsys, monkeypatch, tmp_path, words, status, says):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *(word.format(folder=folder) for word in words)]) == status
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "x.csv").exists()
