"""What changed from one run to the next, beyond the noise of either.

Compared are ratios to a peer that ran in the same rounds, not times: what slows the machine slows both. A change is
called one where the ratio of the best times differs by more than FLOOR, and the rounds of one run lie below those of
the other by the rank-sum test (Mann and Whitney 1947, normal approximation). Best times, because a slower op is slower
at its best too, while a disturbance that hits one way harder than the other leaves the rounds that it missed where they
were. They decide: rounds of one visit are no independent ones, so that the test by itself would call a quarter of the
cases changed where a host's speed moves between visits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mean
from typing import Any, Literal, NamedTuple

from bench.rows import OURS, REFERENCE, Row, Run

FLOOR = 0.07  # two processes differ by some of it: where memory lies, which core
DEVIATIONS = 2.6  # of the rank sum: for independent rounds, by chance in one comparison of 200
BEST = 0.1  # the share of the rounds, the fastest ones, whose mean is the best time
CONFIDENT = 0.9  # below, there were too few rounds to tell

Verdict = Literal["slower", "faster", "same", "too few rounds", "not compared"]


class Change(NamedTuple):
    part: str
    case: str
    peer: str
    before: float  # ratio: how many times as fast as the peer
    after: float
    verdict: Verdict

    @property
    def times(self) -> float:
        """Ours takes so many times as long as before, beside the same peer."""
        return self.before / self.after


def key_of(row: Row) -> tuple[str, str]:
    return row["part"], row["case"]


def peer_of(row: Row) -> str | None:
    """The reference, or else the first peer that ran."""
    ratios = row["ratios"]
    return REFERENCE if REFERENCE in ratios else next(iter(ratios), None)


def changes(before: Run, after: Run) -> Iterator[Change]:
    """Of every case that both have beside the same peer."""
    known = {key_of(row): row for row in before.rows}
    same_machine = before.machine.get("device") == after.machine.get("device")
    for row in after.rows:
        old, peer = known.get(key_of(row)), peer_of(row)
        if old is None or peer is None or peer not in old["ratios"]:
            continue
        was, now = old["ratios"][peer], row["ratios"][peer]
        verdict: Verdict = "not compared"
        if same_machine:
            verdict = _verdict(was, now, _at_best(old, peer) / _at_best(row, peer))
        yield Change(*key_of(row), peer, was["median"], now["median"], verdict)


def _verdict(was: dict[str, Any], now: dict[str, Any], times_at_best: float) -> Verdict:
    if min(was["confidence"], now["confidence"]) < CONFIDENT:
        return "too few rounds"
    if times_at_best > 1 + FLOOR and _above(was["rounds"], now["rounds"]):
        return "slower"
    if 1 / times_at_best > 1 + FLOOR and _above(now["rounds"], was["rounds"]):
        return "faster"
    return "same"


def _at_best(row: Row, peer: str) -> float:
    """The ratio of the best times."""
    ours, theirs = (_best(row["ways"][who]["seconds"]) for who in (OURS, peer))
    return theirs / ours


def _best(seconds: list[float]) -> float:
    return mean(sorted(seconds)[: max(1, int(BEST * len(seconds)))])


def _above(higher: list[float], lower: list[float]) -> bool:
    """By more than chance."""
    n, m = len(higher), len(lower)
    wins = sum((a > b) + (a == b) / 2 for a in higher for b in lower)
    return (wins - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12) > DEVIATIONS
