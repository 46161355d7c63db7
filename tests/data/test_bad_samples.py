"""Counting promises: exact totals however few the lines, twenty lines a cause, the reference's wording."""

from __future__ import annotations

import logging

import pytest

from fastclip.data.bad_samples import (
    BAD_PICTURE,
    CUT_SHARD,
    EMPTY_CAPTION,
    HOPELESS_SAMPLES,
    JUDGED_AFTER,
    LINES_PER_CAUSE,
    NO_CAPTION,
    BadSampleCounter,
    BadSampleNotes,
)
from fastclip.errors import DataError


def test_counts_are_exact_and_lines_few(caplog):
    notes, counter = BadSampleNotes("x"), BadSampleCounter()
    notes.good = 1
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            notes.note(BAD_PICTURE, f"0.tar/{number}", "cut short")
            notes.note(NO_CAPTION, f"0.tar/n{number}")
            if number % 300 == 0:
                counter.absorb(notes.take())
        counter.absorb(notes.take())
        counter.absorb(notes.take())  # nothing is counted twice
    assert counter.counts == {BAD_PICTURE: 1000, NO_CAPTION: 1000}
    assert counter.dropped == 2000
    assert len(caplog.records) == 2 * (LINES_PER_CAUSE + 1)
    assert sum(len(record.getMessage()) for record in caplog.records) < 100_000
    assert caplog.records[0].getMessage() == (
        "Handling webdataset error (unreadable picture in 0.tar/0: cut short). Ignoring."
    )


def test_the_lines_of_several_processes_share_one_limit(caplog):
    counter = BadSampleCounter()
    for worker in range(8):
        notes = BadSampleNotes("x")
        notes.good = 1
        for number in range(15):
            notes.note(BAD_PICTURE, f"{worker}.tar/{number}")
        counter.absorb(notes.take())
    assert counter.dropped == 120
    assert sum("Handling" in record.getMessage() for record in caplog.records) == LINES_PER_CAUSE


def test_what_drops_no_sample_is_counted_apart(caplog):
    notes, counter = BadSampleNotes("x"), BadSampleCounter()
    notes.note(EMPTY_CAPTION, "0.tar/7")
    notes.note(CUT_SHARD, "0.tar")
    counter.absorb(notes.take())
    assert counter.counts == {EMPTY_CAPTION: 1, CUT_SHARD: 1}
    assert counter.dropped == 0
    assert counter.summary() == "empty caption (kept): 1, shard cut short: 1"
    assert "kept, as in OpenCLIP" in caplog.records[0].getMessage()


def test_hopeless_needs_many_samples_no_good_one_and_a_second_shard():
    def bad(notes, times):
        for number in range(times):
            notes.note(BAD_PICTURE, f"a/{number}", "why")

    one_shard = BadSampleNotes("x")
    one_shard.shards = 1
    bad(one_shard, 3 * HOPELESS_SAMPLES)
    had_good = BadSampleNotes("x")
    had_good.good, had_good.shards = 1, 5
    bad(had_good, 3 * HOPELESS_SAMPLES)
    for shards in (0, 2):  # 0: data without shards
        notes = BadSampleNotes("--train-data d")
        notes.shards = shards
        bad(notes, HOPELESS_SAMPLES - 1)
        with pytest.raises(DataError, match=r"--train-data d: .* unreadable picture in a/0: why"):
            bad(notes, 1)


def test_the_run_ends_once_too_large_a_part_is_bad():
    """Not before there are enough samples to judge by, and by the dropped ones alone."""

    def counter(dropped: int) -> BadSampleCounter:
        made, notes = BadSampleCounter(0.2, "--train-data d"), BadSampleNotes("x")
        notes.good = 1
        for number in range(dropped):
            notes.note(BAD_PICTURE, f"a/{number}")
            notes.note(EMPTY_CAPTION, f"b/{number}")
        made.absorb(notes.take())
        return made

    counter(2000).keep(JUDGED_AFTER - 2000)  # exactly the share
    counter(2001).keep(JUDGED_AFTER - 2002)  # one sample too few to judge
    with pytest.raises(
        DataError,
        match=r"^--train-data d: 2,001 of the first 10,000 samples are bad, more than "
        r"--max-bad-fraction 0.2 \(unreadable picture: 2,001\)$",
    ):
        counter(2001).keep(JUDGED_AFTER - 2001)


def test_names_of_any_length_and_content_make_one_short_line(caplog):
    notes, counter = BadSampleNotes("x"), BadSampleCounter()
    notes.note(NO_CAPTION, "0.tar/a\nb\x1b[2J" + "k" * 100_000, "é" * 5000)
    counter.absorb(notes.take())
    line = caplog.records[0].getMessage()
    assert line.isprintable()
    assert len(line) < 600
    assert "a\\nb\\x1b[2J" in line
