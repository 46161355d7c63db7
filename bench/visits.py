"""Short cases are timed in several visits, spread over the run.

A machine changes its speed for seconds or minutes, by heat or a neighbour on the same host, and not for every way
alike: rounds taken in one go would all say the same, and be far from what they say the next time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.paired import in_one_line


@dataclass
class _Case:
    name: str
    visit: Callable[[], None]
    left: int
    of: int  # visits after the first
    made_after: int  # tests


class Visits:
    """The cases of a run that are to be visited again; as the run has more tests to come, the rarer."""

    def __init__(self, tests: int) -> None:
        self._tests, self._ended = tests, 0
        self._cases: list[_Case] = []

    def add(self, name: str, visit: Callable[[], None], times: int) -> None:
        """From a test: `visit` so many times, evenly over the tests that follow, the last of them after the last."""
        self._cases.append(_Case(name, visit, times, times, self._ended + 1))

    def after_test(self) -> None:
        """Make the visits that are due. Raises RuntimeError where a way fails that ran before."""
        self._ended += 1
        while due := [case for case in self._cases if self._left_now(case) < case.left]:
            for case in due:
                self._visit(case)
        self._cases = [case for case in self._cases if case.left]

    def _left_now(self, case: _Case) -> int:
        """As many as may be left at this time."""
        if self._ended >= self._tests:
            return 0
        passed = (self._ended - case.made_after) / (self._tests - case.made_after)
        return case.of - int(case.of * passed)

    def _visit(self, case: _Case) -> None:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()  # what the last test left
        try:
            case.visit()
            case.left -= 1
        except Exception as error:  # it keeps the rounds that it has
            case.left = 0
            raise RuntimeError(f"{case.name}: not timed again: {in_one_line(error)}") from error
