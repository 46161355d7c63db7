"""An epoch that one division into ranks and loader processes began and another one ends.

What the old loader processes had not yet given is shared out over the new ones, so that every sample of the epoch is
still met once. They are grouped: with 8 old and 6 new processes the greatest common divisor makes 2 groups, in each
of which 3 new ones read what 4 old ones have left, end to end, and take every third sample of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Protocol

from fastclip.data.bad_samples import BadSampleNotes
from fastclip.data.position import DataPosition
from fastclip.data.shards import Position


class RankSource(Protocol):
    """A dataset whose samples are divided over ranks and their loader processes; turn follows turn."""

    name: str

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[Any]: ...

    def of_rank(self, rank: int, world_size: int) -> RankSource:
        """The same data as another rank of another number of them reads it."""
        ...


class Inherited:
    """`source`, but for the epoch of `left`, of which only what the division of `left` did not give is read."""

    def __init__(
        self, source: RankSource, left: DataPosition, *, rank: int, world_size: int
    ) -> None:
        self.name = source.name
        self._source, self._left, self._rank, self._world_size = source, left, rank, world_size

    def of_rank(self, rank: int, world_size: int) -> Inherited:
        source = self._source.of_rank(rank, world_size)
        return Inherited(source, self._left, rank=rank, world_size=world_size)

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[Any]:
        if at.epoch != self._left.epoch:
            return self._source.read(at, notes)
        old = len(self._left.ranks) * self._left.workers
        new = self._world_size * at.workers
        mine = self._rank * at.workers + at.worker
        groups = math.gcd(old, new)
        samples = itertools.chain.from_iterable(
            self._rest_of(stream, at, notes) for stream in range(mine % groups, old, groups)
        )
        return itertools.islice(samples, mine // groups, None, new // groups)

    def _rest_of(self, stream: int, at: Position, notes: BadSampleNotes) -> Iterator[Any]:
        """What old loader process number `stream` has left; in later turns, all that it has."""
        left = self._left
        rank, worker = divmod(stream, left.workers)
        was, place = left.ranks[rank], left.ranks[rank].places[worker]
        source = self._source.of_rank(rank, len(left.ranks))
        if left.inherited is not None:
            source = Inherited(source, left.inherited, rank=rank, world_size=len(left.ranks))
        turn = Position(at.epoch, worker, left.workers, place.turn + at.turn)
        samples = source.read(turn, notes)
        if at.turn:
            return samples
        half_used = was.used if worker == was.parcels % left.workers else 0
        return itertools.islice(samples, place.read + half_used, None)
