"""Who runs when, what a row says, and how wide a spread is."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.contest import Contest
from bench.paired import Timing, alternate, with_spread
from bench.peak_memory import peak_bytes
from bench.rows import Ceilings, Row, Work
from bench.sizes import QUICK, Rounds
from bench.table import lines_of
from bench.visits import Visits

CPU = torch.device("cpu")


class Benchmark:
    """Calls as pytest-benchmark's `pedantic` documents it."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, target: Any, setup: Any, teardown: Any, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            target()
            teardown()


def contest(rows: list[Row], visits: Visits | None = None) -> Contest:
    sizes = replace(QUICK, round_seconds=1e-4)
    return Contest(Benchmark(), CPU, sizes, Ceilings(100e9, 10e9), rows, visits or Visits(1))


def test_ways_run_in_turns_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bench.contest.warmed_up", lambda ways, *_: {n: Timing([], 1) for n in ways}
    )
    order: list[str] = []
    # seconds go by so fast that each is repeated; only changes of who runs count
    ways = {name: (lambda name=name: order.append(name)) for name in ("fastclip", "a", "b")}
    rows: list[Row] = []
    contest(rows).run("op", "case", ways, Work(3), missing={}, rounds=Rounds(1, 4))
    seen = [name for name, _ in itertools.groupby(order)]
    # the last of a round begins the next one; the first call finds out how long one takes
    assert seen == ["fastclip", "a", "b", "a", "fastclip", "a", "b", "a", "fastclip"]
    assert {len(way["seconds"]) for way in rows[0]["ways"].values()} == {4}
    alternating: list[str] = []
    both = {name: (lambda name=name: alternating.append(name)) for name in "ab"}
    alternate(both, CPU, rounds=3, warm_up=0)
    assert "".join(alternating[-6:]) == "abbaab"


def test_short_cases_are_visited_again_over_the_run() -> None:
    """As often as the sizes say, evenly over the tests that come."""
    rows: list[Row] = []
    visits = Visits(tests=9)
    rounds = []
    for test in range(9):
        if test in (0, 4, 8):
            ways = {"fastclip": lambda: None, "open_clip": lambda: None}
            contest(rows, visits).run(
                "op", f"{test}", ways, Work(1), missing={}, rounds=Rounds(6, 5)
            )
        visits.after_test()
        rounds.append([len(row["ways"]["open_clip"]["seconds"]) // 5 for row in rows])
    assert rounds == [[1], [1], [2], [2], [3, 1], [4, 2], [4, 3], [5, 4], [6, 6, 6]]
    assert all(len(row["ratios"]["open_clip"]["rounds"]) == 30 for row in rows)
    # the range of six visits' medians
    assert {row["ratios"]["open_clip"]["confidence"] for row in rows} == {1 - 2 / 2**6}


def test_a_visit_that_fails_leaves_the_rounds_there_are() -> None:
    rows: list[Row] = []
    visits = Visits(tests=2)
    state = {"fails": False}

    def theirs() -> None:
        if state["fails"]:
            raise torch.OutOfMemoryError("no room")

    contest(rows, visits).run(
        "op",
        "case",
        {"fastclip": lambda: None, "open_clip": theirs},
        Work(1),
        missing={},
        rounds=Rounds(2, 5),
    )
    visits.after_test()
    state["fails"] = True
    with pytest.raises(RuntimeError, match="op, case: not timed again: OutOfMemoryError: no room"):
        visits.after_test()
    ways = rows[0]["ways"]
    assert {len(ways[name]["seconds"]) for name in ways} == {5}


def test_a_row_says_how_many_times_as_fast_and_how_much_is_used() -> None:
    rows: list[Row] = []
    times: dict[str, Timing | str] = {
        "fastclip": Timing([1.0, 2.0, 1.0], 5),
        "open_clip": Timing([2.0, 6.0, 2.0], 10),
        "large": "out of memory",
    }
    work = Work(samples=64, flops=50e9, bytes=2e9)
    contest(rows).record("op", "case", times, work, missing={"gone": "not installed"})
    (row,) = rows
    assert row["ratios"]["open_clip"] == {
        "rounds": [2.0, 3.0, 2.0], "median": 2.0, "low": 2.0, "high": 3.0, "confidence": 0.75,
    }  # fmt: skip
    ours = row["ways"]["fastclip"]
    assert (ours["samples_per_second"], ours["of_gemm_rate"], ours["of_copy_rate"]) == (
        64,
        0.5,
        0.2,
    )
    text = "\n".join(lines_of(rows, ["test_op: WRONG"]))
    assert "2.00   2.00 to 3.00" in text
    for told in ("out of memory", "missing gone: not installed", "FAILED test_op: WRONG"):
        assert told in text


def test_ours_out_of_memory_is_told_and_ours_broken_fails() -> None:
    def no_room() -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    rows: list[Row] = []
    ways = {"fastclip": no_room, "open_clip": lambda: None}
    contest(rows).run("op", "large", ways, Work(1), missing={}, rounds=Rounds(1, 2))
    assert rows[0]["ways"]["fastclip"] == {"error": "out of memory"}
    assert len(rows[0]["ways"]["open_clip"]["seconds"]) == 2
    with pytest.raises(
        pytest.fail.Exception, match="op, broken: fastclip failed: ZeroDivisionError"
    ):
        contest(rows).run(
            "op", "broken", {"fastclip": lambda: 1 / 0}, Work(1), missing={}, rounds=Rounds(1, 2)
        )


@pytest.mark.parametrize("rounds", [7, 9, 15, 21])
def test_the_spread_holds_the_true_median_as_often_as_it_says(rounds: int) -> None:
    """Of any distribution: here a lopsided one with far outliers."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    drawn, trials, held = random.Random(seed), 2000, 0
    for _ in range(trials):
        found = with_spread([drawn.lognormvariate(0, 1) ** 2 for _ in range(rounds)])
        held += found.low <= 1 <= found.high
    assert found.confidence >= 0.95
    # five standard deviations of a count of trials
    assert abs(held / trials - found.confidence) < 5 * math.sqrt(0.05 / trials)


def test_peak_memory_is_exact() -> None:
    def call() -> None:
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(3 << 20, dtype=torch.uint8)
        del first
        third = torch.empty(2 << 20, dtype=torch.uint8)
        del second, third

    assert peak_bytes(call, CPU) == 5 << 20
