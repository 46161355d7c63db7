"""Csv data promises: pandas' rows, the reference's order over ranks, bad rows passed over, clear refusals."""

from __future__ import annotations

import random
from pathlib import Path

import pandas
import pytest
from torch.utils.data.distributed import DistributedSampler

from fastclip.data.bad_samples import EMPTY_CAPTION, MISSING_FILE, BadSampleNotes
from fastclip.data.csv_source import CsvSource, Row, read_rows
from fastclip.data.row_source import Division
from fastclip.data.shards import Position
from fastclip.errors import DataError, InputMissing, UserError
from tests.data.shard_files import fresh_seed, jpeg


def rows_of(
    path: Path, separator: str = "\t", image: str = "filepath", caption: str = "title"
) -> list[Row]:
    return read_rows(
        str(path), separator=separator, image_key=image, caption_key=caption, flag="--train-data"
    )


def quoted(value: str, separator: str) -> str:
    if any(c in value for c in (separator, '"', "\n", "\r")):
        return '"' + value.replace('"', '""') + '"'
    return value


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_rows_are_those_of_pandas(tmp_path, separator):
    rng = random.Random(fresh_seed())
    words = [
        "a cat",
        "",
        "NA",
        "None",
        "null",
        "nan",
        'say "hi"',
        "x,y;z|w\tv",
        "two\nlines",
        "é 漢 😀",
        " pad ",
    ]
    lines = [separator.join(["index", "title", "filepath"])]
    for number in range(200):
        caption = rng.choice(words)
        lines.append(separator.join([str(number), quoted(caption, separator), f"img {number}.jpg"]))
        if rng.random() < 0.1:
            lines.append("")  # pandas passes over empty lines
    lines.append(f"999{separator}short row")
    path = tmp_path / "d.csv"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text("\n".join(lines), encoding=encoding, newline="")
        frame = pandas.read_csv(path, sep=separator)
        rows = rows_of(path, separator)
        ours = [
            ("nan" if r.path == "" else r.path, c.caption)
            for r, c in ((row, _served(row)) for row in rows)
        ]
        assert ours == [
            (str(p), str(c))
            for p, c in zip(frame["filepath"].tolist(), frame["title"].tolist(), strict=True)
        ]


def _served(row: Row) -> Row:
    """The row with its caption as a sample would carry it."""
    picture = Path("/dev/null")
    source = CsvSource("x", [Row(str(picture), row.caption)], Division(1))
    sample = source.sample(0, "", BadSampleNotes("x"))
    assert sample is not None
    return Row(row.path, sample.caption)


def test_a_tab_typed_as_backslash_t_is_a_tab(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text("filepath\ttitle\na.jpg\tcat\n")
    assert rows_of(path, r"\t") == [("a.jpg", "cat")] == rows_of(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, InputMissing, "no such file"),
        (b"", DataError, "the file is empty"),
        (b"filepath\ttitle\n", DataError, "a header and no rows"),
        (b"filepath,title\na,b\n", DataError, r"no column 'filepath' .*give --csv-separator ','"),
        (b"image\ttitle\na\tb\n", DataError, r"among: image, title; .*--csv-img-key"),
        (
            b"filepath\ttext\na\tb\n",
            DataError,
            r"no column 'title' among: filepath, text; .*--csv-caption-key",
        ),
        (b"filepath\ttitle\na\t\xff\n", DataError, "not UTF-8"),
    ],
)
def test_unusable_files_are_one_clear_line(tmp_path, content, error, words):
    path = tmp_path / "d.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--train-data {path}: ")


def test_a_folder_and_a_long_separator_are_refused(tmp_path):
    with pytest.raises(InputMissing, match="directory"):
        rows_of(tmp_path)
    with pytest.raises(UserError, match="--csv-separator"):
        rows_of(tmp_path, ", ")


def source_of(rows: int, **division: object) -> CsvSource:
    return CsvSource("x", [Row(f"{i}", "") for i in range(rows)], Division(**division))  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_see_the_rows_of_the_references_sampler(world_size):
    seed = fresh_seed()
    for rank in range(world_size):
        ours = source_of(
            101, batch_size=4, shuffle=True, seed=seed, rank=rank, world_size=world_size
        )
        theirs = DistributedSampler(range(101), num_replicas=world_size, rank=rank)
        for epoch in (0, 1, 7):
            theirs.set_epoch(epoch)
            assert ours.order(epoch) == list(theirs)


def test_one_process_has_an_order_for_each_seed_and_epoch():
    def order(seed, epoch):
        return source_of(50, batch_size=4, shuffle=True, seed=seed).order(epoch)

    assert sorted(order(1, 2)) == list(range(50))
    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    assert source_of(50, batch_size=4).order(3) == list(range(50))


def test_workers_take_batches_in_turn_and_miss_nothing(tmp_path):
    picture = tmp_path / "p.jpg"
    picture.write_bytes(jpeg(0))
    rows = [Row(str(picture), f"{i}") for i in range(23)]
    for workers in (1, 2, 3, 7):
        source = CsvSource("x", rows, Division(4))
        got = [
            [int(s.caption) for s in source.read(Position(0, w, workers, 0), BadSampleNotes("x"))]
            for w in range(workers)
        ]
        assert sorted(i for w in got for i in w) == list(range(23))
        assert all(
            got[b % workers][b // workers * 4 : b // workers * 4 + 4]
            == list(range(b * 4, min(23, b * 4 + 4)))
            for b in range(6)
        )


def test_bad_rows_are_counted_and_passed_over(tmp_path):
    picture = tmp_path / "p.jpg"
    picture.write_bytes(jpeg(0))
    rows = [
        Row(str(picture), "good"),
        Row(str(tmp_path / "gone.jpg"), "x"),
        Row("", "y"),
        Row(str(picture), "NA"),
    ]
    notes = BadSampleNotes("x")
    samples = list(CsvSource("x", rows, Division(2)).read(Position(0, 0, 1, 0), notes))
    assert [s.caption for s in samples] == ["good", "nan"]
    report = notes.take()
    assert report.counts == {MISSING_FILE: 2, EMPTY_CAPTION: 1}
    assert "gone.jpg (row 2)" in report.events[0].where
