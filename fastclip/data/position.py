"""Where a run is in its data: what every loader process has given of an epoch, so that another run can go on there.

A loader process gives its batches in an order that is a function of (seed, epoch, rank, worker, turn), and the
processes are asked in turn. So a position is a few counts, whatever has been read ahead, and what was not given yet
is made again from them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fastclip.data.bad_samples import BadReport


class Place(NamedTuple):
    """Of one loader process, between two of its batches."""

    turn: int = 0
    read: int = 0  # samples that its source has given in that turn, used or not
    last: str = ""  # key of the last of them: shows whether the same samples are met again


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderPosition:
    """What one rank's training has taken of an epoch.

    `parcels` are batches taken from loader processes: more than `given` where members failed to decode, and then the
    first `used` samples of the next parcel are in batches already given.
    """

    epoch: int
    given: int  # batches
    parcels: int
    used: int = 0
    repeated: int = (
        0  # batches that a loader process made from samples which it had given before in this epoch
    )
    places: tuple[Place, ...]  # of each loader process, after its share of `parcels`

    @classmethod
    def beginning(cls, epoch: int, workers: int) -> LoaderPosition:
        return cls(epoch=epoch, given=0, parcels=0, places=(Place(),) * workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPosition:
    """Of a whole run: every rank's position, and the division into ranks and loader processes that these are of."""

    workers: int  # per rank, at least 1
    batch_size: int
    data: str  # fingerprint of what is read, see `fingerprint`
    ranks: tuple[LoaderPosition, ...]
    inherited: DataPosition | None = (
        None  # where this division itself took over an epoch from another
    )

    @property
    def epoch(self) -> int:
        return self.ranks[0].epoch

    @property
    def samples(self) -> int:
        """Of the epoch, over all ranks, that training has taken."""
        return self.ranks[0].given * self.batch_size * len(self.ranks)

    def as_plain(self) -> dict[str, Any]:
        """Dicts, lists, numbers and texts only: what a checkpoint that runs no code can hold."""
        return {
            **asdict(self),
            "ranks": [{**asdict(r), "places": [list(p) for p in r.places]} for r in self.ranks],
            "inherited": None if self.inherited is None else self.inherited.as_plain(),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> DataPosition:
        """The inverse of `as_plain`. Raises TypeError or KeyError on something else."""
        ranks = (
            LoaderPosition(**{**rank, "places": tuple(Place(*place) for place in rank["places"])})
            for rank in plain["ranks"]
        )
        inherited = plain["inherited"]
        return cls(
            **{
                **plain,
                "ranks": tuple(ranks),
                "inherited": None if inherited is None else cls.from_plain(inherited),
            }
        )


class Mark(NamedTuple):
    """Goes along with a batch from the loader's thread to the training loop."""

    position: LoaderPosition
    reports: list[BadReport]  # of what was met since the batch before


class Tape:
    """Follows, in the loader's thread, what is taken from the loader processes."""

    def __init__(self, start: LoaderPosition) -> None:
        self._epoch, self._given, self._parcels = start.epoch, start.given, start.parcels
        self._repeated = start.repeated
        self._places = list(start.places)
        self._before = Place()  # where the process of the last parcel was before it
        self._reports: list[BadReport] = []

    def took(self, start: Place, end: Place) -> None:
        """One more parcel, the next process's."""
        self._before = start
        self._places[self._parcels % len(self._places)] = end
        self._parcels += 1
        self._repeated += end.turn > 0

    def met(self, report: BadReport) -> None:
        self._reports.append(report)

    def take_reports(self) -> list[BadReport]:
        reports, self._reports = self._reports, []
        return reports

    def mark(self, rest: int, batch_size: int) -> Mark:
        """One more batch; `rest` samples at the end of the last parcel wait for the next one."""
        self._given += 1
        places, parcels = list(self._places), self._parcels
        if rest:  # the last parcel is to be made once more
            parcels -= 1
            places[parcels % len(places)] = self._before
        position = LoaderPosition(
            epoch=self._epoch,
            given=self._given,
            parcels=parcels,
            used=batch_size - rest if rest else 0,
            repeated=self._repeated,
            places=tuple(places),
        )
        return Mark(position, self.take_reports())


def fingerprint(*facts: object) -> str:
    """Of whatever decides which samples are read, and in which order."""
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
