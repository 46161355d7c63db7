"""The fixture `contest`: ways to do one thing in turns under pytest-benchmark, ours among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.paired import Timing, in_turn, time_once, warmed_up
from bench.rows import OURS, Ceilings, Row, Work, make_row
from bench.sizes import Sizes

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
    ) -> None:
        self._benchmark, self.device, self.sizes = benchmark, device, sizes
        self._ceilings, self._rows = ceilings, rows

    def run(
        self,
        part: str,
        case: str,
        ways: Ways,  # OURS first
        work: Work,
        *,
        missing: dict[str, str],
        rounds: int | None = None,
        warm_up: int = 2,
        **more: Any,
    ) -> None:
        """Times them and adds a row. pytest-benchmark times ours; each round of the others lies before or after one of
        its rounds, in turn. Ours failing is the test's failure, unless it is for memory.
        """
        results = warmed_up(ways, self.device, warm_up)
        self._take_turns(ways, results, rounds or self.sizes.rounds)
        self.record(part, case, results, work, missing=missing, **more)

    def record(
        self,
        part: str,
        case: str,
        results: dict[str, Timing | str],
        work: Work,
        *,
        missing: dict[str, str],
        **more: Any,
    ) -> None:
        """Adds a row of times that were taken elsewhere."""
        row = make_row(part, case, results, work, self._ceilings, missing, **more)
        self._rows.append(row)
        self._benchmark.extra_info.update(row)
        ours = results.get(OURS)
        if isinstance(ours, str) and ours != "out of memory":
            pytest.fail(f"{part}, {case}: {OURS} {ours}", pytrace=False)

    def once(self, call: Callable[[], Any]) -> Any:
        """`call()` as the one round of pytest-benchmark, for what times itself."""
        return self._benchmark.pedantic(call, rounds=1)

    def _take_turns(self, ways: Ways, results: dict[str, Timing | str], rounds: int) -> None:
        running = {name: each for name, each in results.items() if isinstance(each, Timing)}
        if not running:
            return
        first = next(iter(running))  # ours, unless it ran out of memory
        once = time_once(ways[first], self.device)
        repeats = max(1, math.ceil(self.sizes.round_seconds / max(once, 1e-7)))
        turn = 0

        def take(name: str) -> None:
            running[name].seconds.append(time_once(ways[name], self.device, repeats))

        def around(*, before: bool) -> None:
            """Those whose turn is before `first` in this round, or after."""
            order = in_turn(list(running), turn)
            at = order.index(first)
            for name in order[:at] if before else order[at + 1 :]:
                take(name)

        def after() -> None:
            nonlocal turn
            around(before=False)
            turn += 1

        self._benchmark.pedantic(
            lambda: take(first),
            setup=lambda: around(before=True),
            teardown=after,
            rounds=rounds,
        )
