"""What changed from one run to the next, beyond the noise of either.

Compared are ratios to a peer that ran in the same rounds, not times: what slows the machine slows both. A change is
called one where the rounds of one run lie below those of the other by the rank-sum test (Mann and Whitney 1947, normal
approximation), and each of their quartiles differs by more than FLOOR. Quartiles, because a slower op is slower in
every round, while a disturbance that hits one way harder than the other leaves the rounds that it missed where they
were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import quantiles
from typing import Any, Literal, NamedTuple

from bench.rows import REFERENCE, Row, Run

FLOOR = 0.07  # two processes differ by some of it: where memory lies, which core
DEVIATIONS = 2.6  # of the rank sum: by chance in one comparison of 200
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
        verdict = _verdict(was, now) if same_machine else "not compared"
        yield Change(*key_of(row), peer, was["median"], now["median"], verdict)


def _verdict(was: dict[str, Any], now: dict[str, Any]) -> Verdict:
    if min(was["confidence"], now["confidence"]) < CONFIDENT:
        return "too few rounds"
    if _above(was["rounds"], now["rounds"]):
        return "slower"
    return "faster" if _above(now["rounds"], was["rounds"]) else "same"


def _above(higher: list[float], lower: list[float]) -> bool:
    """By more than chance, and at each quartile by more than FLOOR."""
    n, m = len(higher), len(lower)
    wins = sum((a > b) + (a == b) / 2 for a in higher for b in lower)
    deviations = (wins - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    pairs = zip(
        *(quantiles(each, n=4, method="inclusive") for each in (higher, lower)), strict=True
    )
    return deviations > DEVIATIONS and all(high / low > 1 + FLOOR for high, low in pairs)
