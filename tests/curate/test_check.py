"""A check counts what is there, by the functions that training uses, and judges it by exit status."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from fastclip import optional
from fastclip.cli.main import main
from fastclip.curate.scan import MAX_TOKENS, token_counts
from fastclip.data import shards
from fastclip.data.bad_samples import BAD_PICTURE, NO_CAPTION
from fastclip.data.tokenizer import ClipTokenizer
from fastclip.errors import ExitCode
from tests.data.bad_kinds import MAX_MEMBER, all_kinds
from tests.data.bad_pictures import unusable_pictures
from tests.data.loaders import build
from tests.data.pictures import encode, smooth, without_tables
from tests.data.shard_files import fresh_seed, jpeg, sample_members, tar_bytes, write_shards


def check(*words: object) -> int:
    return main(["data", "check", "--processes", "1", *map(str, words)])


def report(folder: Path) -> dict:
    return json.loads((folder / "data_check.json").read_text())


def bad_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "data_check.bad.jsonl").read_text().splitlines()]


def test_every_kind_is_counted_as_in_training_and_every_bad_member_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", MAX_MEMBER)
    rng, kinds = random.Random(fresh_seed()), all_kinds()
    samples = [(number, kind) for number, kind in enumerate(kinds.values(), 100)]
    rng.shuffle(samples)
    members = [m for number, kind in samples for m in kind.members(number)]
    members += [m for number in range(40) for m in sample_members(number)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    causes = Counter(cause for kind in kinds.values() for cause in kind.causes)
    assert check(tmp_path, "--decode") == 0
    found = report(tmp_path)
    assert found["causes"] == dict(causes)
    assert found["samples"] == 40 + sum(kind.used for kind in kinds.values())
    assert json.loads((tmp_path / "sizes.json").read_text()) == {"a.tar": found["samples"]}
    lines = bad_lines(tmp_path)
    assert Counter(line["cause"] for line in lines) == causes
    pictures = Counter(line["cause"] for line in lines if line["shard"] == "a.tar" and line["key"])
    assert pictures == causes  # all are about samples
    # each bad picture by its key
    number_of = {name: number for number, name in enumerate(kinds, 100)}
    named = {line["key"] for line in lines if line["cause"] == BAD_PICTURE}
    assert {f"{number_of[name]:06d}" for name in unusable_pictures()} <= named


def test_what_training_will_do_is_what_it_does(tmp_path, capsys):
    write_shards(tmp_path, [10, 13, 7])
    assert check(tmp_path, "--batch-size", 4, "--workers", 3) == 0
    training = report(tmp_path)["training"]
    # sizes.json is now what the loader counts by
    loader = build(train_data=str(tmp_path), batch_size=4, workers=3).train
    assert training["steps_per_epoch"] == loader.num_batches
    assert training["samples_per_epoch"] == loader.num_samples
    assert training["refused"] is None
    assert "steps an epoch" in capsys.readouterr().out
    assert check(tmp_path, "--workers", 4) == 0
    assert "use --workers 3" in report(tmp_path)["training"]["refused"]


def test_sizes_lengths_formats_and_duplicates(tmp_path):
    captions = ["one", "one", "two words", "word " * 100, "word " * 300]
    pictures = [encode(smooth(20 + n, 30 + n), kind) for n, kind in enumerate(["PNG", "JPEG"] * 2)]
    pictures.append(pictures[0])
    members = []
    for number, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        members += [(f"{number}.jpg", picture), (f"{number}.txt", caption.encode())]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    assert check(tmp_path) == 0
    found = report(tmp_path)
    assert found["formats"] == {"PNG RGB": 3, "JPEG RGB": 2}
    assert (found["shorter_edge"][0], found["width"][-1]) == (20, 33)
    assert found["duplicates"] == {"picture": 1, "caption": 1, "key": 0}
    assert found["captions_cut_at_77_tokens"] == 2
    tokenizer = ClipTokenizer()
    expected = [min(len(tokenizer.encode(c)) + 2, MAX_TOKENS) for c in captions]
    assert token_counts(captions) == expected
    page = (tmp_path / "data_check.md").read_text()
    assert "| PNG RGB | 3 |" in page
    has_plots = not isinstance(optional.find("matplotlib"), str)
    assert (tmp_path / "data_check.png").exists() == ("data_check.png" in page) == has_plots


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch, capsys):
    write_shards(tmp_path, [3])
    monkeypatch.setattr(optional, "find", lambda name: f"{name} is not installed")
    assert check(tmp_path) == 0
    assert "no plots: matplotlib.figure is not installed" in capsys.readouterr().out


def test_decoding_finds_what_headers_do_not_show(tmp_path):
    members = [*sample_members(0), ("1.jpg", without_tables(jpeg(1))), ("1.txt", b"x")]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    assert check(tmp_path) == 0
    assert report(tmp_path)["dropped"] == 0
    assert check(tmp_path, "--decode") == 0
    assert bad_lines(tmp_path)[0]["key"] == "1"


def test_exit_statuses(tmp_path, capsys):
    """65 for nothing usable and for too much that is bad, after the report is written; 66 and 2 for the command."""
    bad = [m for n in range(3) for m in ((f"b{n}.jpg", b"junk"), (f"b{n}.txt", b"x"))]
    good = [m for n in range(7) for m in sample_members(n)]
    for name, members in (("all", bad), ("some", [*good, *bad])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(tar_bytes(members))
    assert check(tmp_path / "all") == ExitCode.DATA_UNUSABLE
    assert report(tmp_path / "all")["causes"] == {BAD_PICTURE: 3}
    assert check(tmp_path / "some") == ExitCode.DONE
    assert check(tmp_path / "some", "--max-bad-fraction", 0.3) == ExitCode.DONE
    capsys.readouterr()
    assert check(tmp_path / "some", "--max-bad-fraction", 0.29) == ExitCode.DATA_UNUSABLE
    last = capsys.readouterr().err.splitlines()[-1]
    assert "30.00% is bad, more than --max-bad-fraction 0.29" in last
    assert check(tmp_path / "none") == ExitCode.INPUT_MISSING
    assert check(tmp_path / "some", "--max-bad-fraction", 2) == ExitCode.USAGE
    assert check(f"{tmp_path}/all/0.tar::{tmp_path}/some/0.tar") == ExitCode.USAGE  # no --out


def test_broken_shards_are_named_and_names_are_no_markup(tmp_path):
    write_shards(tmp_path, [4, 4])
    first = tmp_path / "0000.tar"
    first.write_bytes(first.read_bytes()[:3000])
    (tmp_path / "0002.tar").write_bytes(b"junk" * 999)
    (tmp_path / "0003.tar").write_bytes(tar_bytes([("<b>[x](y)`.jpg", jpeg(0))]))
    assert check(tmp_path) == 0
    lines = bad_lines(tmp_path)
    assert {(line["shard"], line["key"]) for line in lines if line["cause"] != NO_CAPTION} == {
        ("0000.tar", ""),
        ("0002.tar", ""),
    }
    assert "<b>[x](y)" not in (tmp_path / "data_check.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: {check,pack,csv}"),
        (["chek"], "{check,pack,csv}: invalid choice: 'chek'"),
        (["pack", "x"], "the following arguments are required: --out"),
        (["pack", "x", "--out", "y", "--qual", "9"], "unrecognized arguments: --qual 9"),
        (["check", "x", "--workers", "-1"], "--workers: '-1': a whole number, at least 0"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    assert main(["data", *words]) == ExitCode.USAGE
    line, end = capsys.readouterr().err.split("\n")
    assert line.startswith(f"fastclip data: error: {said}")
    assert not end
