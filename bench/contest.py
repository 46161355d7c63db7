"""The fixture `contest`: ways to do one thing in turns under pytest-benchmark, ours among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.paired import Timing, Turns, warmed_up
from bench.rows import OURS, Ceilings, Row, Work, make_row
from bench.sizes import Rounds, Sizes
from bench.visits import Visits

Ways = dict[str, Callable[[], object]]


class Contest:
    """One test's. `rows` is the run's list; what `run` or `record` adds is in table and JSON."""

    def __init__(
        self,
        benchmark: Any,
        device: torch.device,
        sizes: Sizes,
        ceilings: Ceilings,
        rows: list[Row],
        visits: Visits,
    ) -> None:
        self._benchmark, self.device, self.sizes = benchmark, device, sizes
        self._ceilings, self._rows, self._visits = ceilings, rows, visits

    def run(
        self,
        part: str,
        case: str,
        ways: Ways,  # OURS first
        work: Work,
        *,
        missing: dict[str, str],
        rounds: Rounds,
        warm_up: int = 2,
        **more: Any,
    ) -> None:
        """Times them and adds a row. pytest-benchmark times ours in the first visit; each round of the others lies
        before or after one of its rounds, in turn. Ours failing is the test's failure, unless it is for memory.
        """
        results = warmed_up(ways, self.device, warm_up)
        turns = Turns(ways, results, self.device, self.sizes.round_seconds)
        self._first_visit(turns, rounds.each)
        of_visit = rounds.of_visit
        row = self.record(part, case, results, work, missing=missing, of_visit=of_visit, **more)

        def again() -> None:
            turns.visit(rounds.each)
            row.update(
                make_row(part, case, results, work, self._ceilings, missing, of_visit, **more)
            )
            self._benchmark.extra_info.update(row)

        if turns.running and rounds.visits > 1:
            self._visits.add(f"{part}, {case}", again, rounds.visits - 1)

    def record(
        self,
        part: str,
        case: str,
        results: dict[str, Timing | str],
        work: Work,
        *,
        missing: dict[str, str],
        of_visit: int = 1,
        **more: Any,
    ) -> Row:
        """Adds a row of times, and returns it."""
        row = make_row(part, case, results, work, self._ceilings, missing, of_visit, **more)
        self._rows.append(row)
        self._benchmark.extra_info.update(row)
        ours = results.get(OURS)
        if isinstance(ours, str) and ours != "out of memory":
            pytest.fail(f"{part}, {case}: {OURS} {ours}", pytrace=False)
        return row

    def once(self, call: Callable[[], Any]) -> Any:
        """`call()` as the one round of pytest-benchmark, for what times itself."""
        return self._benchmark.pedantic(call, rounds=1)

    def _first_visit(self, turns: Turns, rounds: int) -> None:
        if turns.running:
            self._benchmark.pedantic(
                lambda: turns.take(turns.first),
                setup=turns.before_first,
                teardown=turns.after_first,
                rounds=rounds,
            )
