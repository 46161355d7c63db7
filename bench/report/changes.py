"""What changed from one run to the next, beyond the noise of either.

Compared are ratios to a peer that ran in the same rounds, not times: what slows the machine slows both. A change is
called one where the two intervals of the median ratio do not meet, and each octile of the rounds differs by more than
FLOOR. Octiles, because a slower op is slower in every round, while a disturbance that hits one way harder than the
other leaves the rounds that it missed where they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import quantiles
from typing import Any, Literal, NamedTuple

from bench.rows import REFERENCE, Row, Run

FLOOR = 0.07  # two processes differ by some of it: where memory lies, which core
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
    if now["high"] < was["low"] and _all_above(was["rounds"], now["rounds"]):
        return "slower"
    if now["low"] > was["high"] and _all_above(now["rounds"], was["rounds"]):
        return "faster"
    return "same"


def _all_above(higher: list[float], lower: list[float]) -> bool:
    """Each octile by more than FLOOR."""
    pairs = zip(
        *(quantiles(each, n=8, method="inclusive") for each in (higher, lower)), strict=True
    )
    return all(high / low > 1 + FLOOR for high, low in pairs)
