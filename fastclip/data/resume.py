"""How a run goes on inside an epoch that another run began: the same samples where the flags are the same."""

from __future__ import annotations

from dataclasses import dataclass

from fastclip.data.epoch_plan import EpochPlan
from fastclip.data.inherited import Inherited, RankSource
from fastclip.data.position import DataPosition, LoaderPosition, Place
from fastclip.data.worker import SampleSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Readers:
    """Who reads, and who of them this is."""

    rank: int
    world_size: int
    workers: int  # per rank, at least 1
    batch_size: int
    batches_per_step: int  # of the optimiser

    @property
    def step_samples(self) -> int:
        """Over all ranks."""
        return self.batch_size * self.batches_per_step * self.world_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    source: SampleSource
    start: LoaderPosition
    inherited: DataPosition | None  # to be saved along with this run's own positions
    sentence: str


def resume(
    source: SampleSource,
    plan: EpochPlan,
    readers: Readers,
    left: DataPosition,
    *,
    data: str,
    again: bool,
) -> Resumption:
    """`source` and the position in it that follow on `left`.

    `data` is the fingerprint of what is read. `again` says that a turn of `source` ends and the next one gives the
    same samples, and so that it is a RankSource; else each turn has draws of its own.
    """
    mine = (readers.world_size, readers.workers, readers.batch_size)
    theirs = (len(left.ranks), left.workers, left.batch_size)
    whole_steps = left.ranks[0].given % readers.batches_per_step == 0
    same_data = data == left.data
    if same_data and mine == theirs and whole_steps:
        if left.inherited is not None:
            source = _inherited(source, left.inherited, readers)
        start = left.ranks[readers.rank]
        return Resumption(
            source=source,
            start=start,
            inherited=left.inherited,
            sentence=f"{_inside(left, start.given, plan)}, with the batches that would have followed",
        )
    step = left.samples // readers.step_samples
    given = min(step * readers.batches_per_step, plan.num_batches)
    places = (Place(),) * readers.workers
    inherited = None
    if not same_data:
        how = (
            "--train-data or --seed is not what it was, so this epoch's samples are read from their beginning and "
            "some may be met again"
        )
    elif not again:
        turn = 1 + max(place.turn for rank in left.ranks for place in rank.places)
        places = (Place(turn),) * readers.workers
        how = f"with shards drawn anew, because {_difference(mine, theirs)}"
    else:
        source, inherited = _inherited(source, left, readers), left
        how = (
            f"{_difference(mine, theirs)}: what was not yet read of the epoch is divided anew, and at most one batch "
            "of each loader is met again"
        )
    start = LoaderPosition(epoch=left.epoch, given=given, parcels=given, places=places)
    return Resumption(
        source=source,
        start=start,
        inherited=inherited,
        sentence=f"{_inside(left, given, plan)}; {how}",
    )


def _inherited(source: SampleSource, left: DataPosition, readers: Readers) -> Inherited:
    of_ranks: RankSource = source  # type: ignore[assignment]
    return Inherited(of_ranks, left, rank=readers.rank, world_size=readers.world_size)


def _inside(left: DataPosition, given: int, plan: EpochPlan) -> str:
    return (
        f"resuming epoch {left.epoch} after {given:,} of {plan.num_batches:,} batches on each rank"
    )


def _difference(mine: tuple[int, int, int], theirs: tuple[int, int, int]) -> str:
    def words(ranks: int, workers: int, batch_size: int) -> str:
        return f"{ranks} x {workers} loaders with batches of {batch_size}"

    if mine == theirs:
        return "a save inside a step of another --accum-freq"
    return f"there were {words(*theirs)} and are {words(*mine)}"
