"""Times of several ways to do one thing, taken in turns, so that what slows the machine slows all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.peak_memory import peak_bytes


@dataclass
class Timing:
    """One way's rounds. Seconds and bytes."""

    seconds: list[float]
    peak_bytes: int | None  # allocated above what was there before; None where it is not counted

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Ratio(NamedTuple):
    """How many times as fast one way is as another, and an interval that holds the true median."""

    median: float
    low: float
    high: float
    confidence: float  # that the interval holds it, for independent rounds


def time_once(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds of one call, the mean of so many in a row; on a GPU between two of its own events."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(repeats):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3 / repeats


def warmed_up(
    ways: Mapping[str, Callable[[], object]], device: torch.device, warm_up: int
) -> dict[str, Timing | str]:
    """Each way's peak memory once it is warm, no time taken yet; or why it takes no further part."""
    results: dict[str, Timing | str] = {}
    for name, call in ways.items():
        try:
            for _ in range(warm_up):
                call()
            results[name] = Timing([], peak_bytes(call, device))
        except Exception as error:  # a peer may fail in any way; the others go on
            results[name] = reason(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def reason(error: Exception) -> str:
    """One line on why a way has no time."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(error):
        return "out of memory"
    return f"failed: {in_one_line(error)}"


def in_one_line(error: Exception) -> str:
    """Its class and the beginning of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def alternate(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 7,
    warm_up: int = 2,
) -> dict[str, Timing | str]:
    """The timing of each way, or why it has none: it ran out of memory, or failed.

    Each round runs every way once, and every other round backwards (A B, B A, A B, ...), so that neither a machine
    that slows down nor who comes after whom favours one. A way that fails in its warm-up takes no further part.
    """
    results = warmed_up(ways, device, warm_up)
    for turn in range(rounds):
        for name in in_turn(list(results), turn):
            timing = results[name]
            if isinstance(timing, Timing):
                timing.seconds.append(time_once(ways[name], device))
    return results


class Turns:
    """Rounds of all ways of `results` that have a timing; each round is added there."""

    def __init__(
        self,
        ways: Mapping[str, Callable[[], object]],
        results: Mapping[str, Timing | str],
        device: torch.device,
        round_seconds: float,  # a way is called again until its part of a round takes as long as that
    ) -> None:
        self._ways, self._device = ways, device
        self.running = {name: each for name, each in results.items() if isinstance(each, Timing)}
        self.first = next(iter(self.running), "")  # of the ways that run
        self._repeats, self._turn = 1, 0
        if self.running:
            once = time_once(ways[self.first], device)
            self._repeats = max(1, math.ceil(round_seconds / max(once, 1e-7)))

    def take(self, name: str) -> None:
        """That way's part of a round."""
        seconds = time_once(self._ways[name], self._device, self._repeats)
        self.running[name].seconds.append(seconds)

    def before_first(self) -> None:
        """Those whose turn comes before the first way's in this round."""
        for name in self._order[: self._order.index(self.first)]:
            self.take(name)

    def after_first(self) -> None:
        """The others; the round is over."""
        for name in self._order[self._order.index(self.first) + 1 :]:
            self.take(name)
        self._turn += 1

    def visit(self, rounds: int) -> None:
        """So many rounds more, or none where one of the ways fails."""
        before = {name: len(timing.seconds) for name, timing in self.running.items()}
        try:
            for name in self.running if self._repeats > 1 else ():  # what is long needs no warming
                self._ways[name]()
            for _ in range(rounds):
                self.before_first()
                self.take(self.first)
                self.after_first()
        except Exception:
            for name, count in before.items():
                del self.running[name].seconds[count:]
            raise

    @property
    def _order(self) -> list[str]:
        return in_turn(list(self.running), self._turn)


def in_turn(names: list[str], turn: int) -> list[str]:
    """The order of a round."""
    return names if turn % 2 == 0 else names[::-1]


def ratios(of: Timing, to: Timing) -> list[float]:
    """How many times as fast `to` is as `of`, round by round."""
    return [a / b for a, b in zip(of.seconds, to.seconds, strict=True)]


def ratio(of: Timing, to: Timing) -> float:
    """How many times as fast `to` is as `of`: the median of paired ratios."""
    return statistics.median(ratios(of, to))


def of_visits(of_rounds: list[float], count: int) -> list[float]:
    """The median of each `count` rounds that were taken in one go: rounds of one visit are no independent ones."""
    return [
        statistics.median(of_rounds[start : start + count])
        for start in range(0, len(of_rounds), count)
    ]


def with_spread(of_rounds: list[float], wanted: float = 0.95) -> Ratio:
    """Median and the distribution-free interval for it: the narrowest pair of order statistics that has it between
    them with the confidence wanted, or all rounds where these are too few for that. The k-th smallest of n is
    above the true median only if fewer than k lie below it, so confidence = 1 - 2 P(Binomial(n, 1/2) < k).
    """
    ordered, n = sorted(of_rounds), len(of_rounds)

    def confidence(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max([k for k in range(1, n // 2 + 1) if confidence(k) >= wanted], default=1)
    return Ratio(statistics.median(ordered), ordered[k - 1], ordered[n - k], confidence(k))
