"""Loaders: what the trainer and the evaluators iterate. Batches arrive on the device; training stays one ahead.

Loader processes are torch's DataLoader workers: they read, draw and (without DALI) decode. The main process decodes
with DALI where that is used, and moves batches, in a thread of its own while the step runs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastclip.data.ahead import Ahead
from fastclip.data.bad_samples import BadReport, BadSampleCounter
from fastclip.data.batch import Batch, EncodedBatch
from fastclip.data.epoch_plan import EpochPlan
from fastclip.data.imagenet import LabelledBatch
from fastclip.data.loader_processes import LoaderProcesses
from fastclip.data.packing import TextPacker
from fastclip.data.position import DataPosition, LoaderPosition, Mark, Tape
from fastclip.data.worker import (
    BatchStream,
    EpochClock,
    Parcel,
    Preparer,
    SampleSource,
    unpack,
)
from fastclip.errors import DataError

logger = logging.getLogger(__name__)

Item = TypeVar("Item", Batch, LabelledBatch)

# How long `close` waits for a loader that is stuck, before it leaves it to the end of the process.
_CLOSE_SECONDS = 5.0


class _Marked(NamedTuple):
    batch: Batch
    mark: Mark


class TrainLoader:
    """The batches of training, all full, on the device.

    `num_batches` is per epoch and rank. `num_samples` is the reference's count for the log: shards count all ranks
    and are rounded up to full batches, rows are counted as they are in the file. `bad` counts what was left out.
    `decode` makes the decoder of the main process, in which case `preparer` hands on encoded batches; it is called
    after the loader processes have started, so that these do not inherit its threads. `packer` packs captions: the
    `preparer` does so by it, or, where members of a batch may yet fail to decode, this loader.

    `start` is where the first epoch that is asked for begins, if it is that position's. `position` is always that of
    the batches already given, not of those read ahead; `data` and `inherited` are saved with it.
    """

    def __init__(
        self,
        source: SampleSource,
        preparer: Preparer,
        plan: EpochPlan,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        start_epoch: int,
        decode: Callable[[], Callable[[EncodedBatch], Tensor]] | None = None,
        sentences: list[str] | None = None,
        packer: TextPacker | None = None,
        start: LoaderPosition | None = None,
        data: str = "",
        inherited: DataPosition | None = None,
        max_bad_fraction: float = 1.0,
    ) -> None:
        self.packer, self._overflowed = packer, 0
        self.num_batches, self.num_samples = plan.num_batches, plan.num_samples
        self.bad = BadSampleCounter(max_bad_fraction, source.name)
        self._name, self._batch_size, self._device = source.name, batch_size, device
        self._sentences = sentences or []
        self._clock = EpochClock(start_epoch)
        # Encoded batches are given without end: members that fail to decode are made up for by later ones.
        quota = plan.batches_of_worker if decode is None else None
        self._start, self._workers = start, max(1, workers)
        self._data, self._inherited = data, inherited
        self.position = start or LoaderPosition.beginning(start_epoch, self._workers)
        stream = BatchStream(source, preparer, batch_size, self._clock, quota, start=start)
        self._processes: LoaderProcesses | None = LoaderProcesses(stream, workers, persistent=True)
        self._make_decoder = decode
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._decoder: Callable[[EncodedBatch], Tensor] | None = None
        self._running: Generator[Batch, None, None] | None = None
        self._ahead: Ahead[_Marked] | None = None

    def describe(self) -> list[str]:
        """Sentences for the log: what an epoch is, who decodes, and what will surprise."""
        return list(self._sentences)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The `num_batches` batches of epoch number `epoch`; a function of it and the seed, not of what ran before.

        Fewer where it begins at `start`.
        Ends an epoch that is still under way. Raises DataError, InputMissing or EnvironmentProblem while iterated.
        """
        if self._running is not None:
            self._running.close()
        self._running = self._epoch(epoch)
        return self._running

    def position_of_run(self, ranks: Sequence[LoaderPosition]) -> DataPosition:
        """That of a run whose ranks are at these positions, all in the same epoch."""
        inherited = self._inherited
        if inherited is not None and inherited.epoch != ranks[0].epoch:
            inherited = None
        return DataPosition(
            workers=self._workers,
            batch_size=self._batch_size,
            data=self._data,
            ranks=tuple(ranks),
            inherited=inherited,
        )

    def counts(self) -> dict[str, Any]:
        """What has been counted for the log so far; `load_counts` goes on from it in another run."""
        return {"bad": self.bad.state(), "overflowed": self._overflowed}

    def load_counts(self, counts: dict[str, Any]) -> None:
        self.bad.load(counts["bad"])
        self._overflowed = int(counts["overflowed"])

    def close(self) -> None:
        """End thread and loader processes. The loader cannot be used afterwards."""
        if self._ahead is not None:
            self._clock.stop()
            self._ahead.close(_CLOSE_SECONDS)
            self._ahead = None
        if self._running is not None:
            self._running.close()
            self._running = None
        self._clock.close()
        if self._processes is not None:
            self._processes.end()
            self._processes = None

    def _epoch(self, epoch: int) -> Generator[Batch, None, None]:
        if self._processes is None:
            raise ValueError("this loader has been closed")
        start, self._start = self._start, None
        resumed = start is not None and start.epoch == epoch
        if start is None or not resumed:
            start = LoaderPosition.beginning(epoch, self._workers)
        self.position = start
        self._clock.start(epoch, resumed=resumed)
        # Here and not in the thread of `Ahead`: processes are forked from the main thread.
        batches = self._decoded(self._processes.parcels(), start)
        self._ahead = ahead = Ahead(batches, self._device, self._stream, self._processes.check)
        try:
            for batch, mark in ahead:
                self._absorb(mark.reports)
                self.bad.keep(len(batch.images))
                self._count_overflow(batch)
                self.position = mark.position
                yield batch
            assert self.position.given == self.num_batches, (self.position, self.num_batches)
            self.bad.judge()
        finally:
            self._clock.stop()  # loader processes drop what they are at
            if self._ahead is not None:
                ahead.close()
                self._ahead = None

    def _count_overflow(self, batch: Batch) -> None:
        """Count batches of the large size, and say so at the 1st, 2nd, 4th, 8th, ..."""
        if self.packer is None or len(batch.texts.ids) == self.packer.rows:  # type: ignore[union-attr]
            return
        self._overflowed += 1
        if self._overflowed & (self._overflowed - 1) == 0:
            logger.info(
                "packed captions: %d batches so far did not fit %d rows and took one row a caption",
                self._overflowed,
                self.packer.rows,
            )

    def _decoded(
        self, parcels: Iterator[Parcel], start: LoaderPosition
    ) -> Generator[_Marked, None, None]:
        tape = Tape(start)
        batches = self._unpacked(parcels, tape, start.used)
        left, size = self.num_batches - start.given, self._batch_size
        try:
            if self._make_decoder is None:
                for batch in itertools.islice(batches, left):
                    yield _Marked(batch, tape.mark(0, size))
                return
            from fastclip.data.refill import Refill  # lazily: it knows DALI

            if self._decoder is None:
                self._decoder = self._make_decoder()
            make_batch = Batch if self.packer is None else self.packer.batch
            refill = Refill(self._decoder, size, tape.met, self._name, make_batch)
            for batch in itertools.islice(refill.batches(batches), left):
                yield _Marked(batch, tape.mark(refill.rest, size))
        except Exception:
            self._absorb(tape.take_reports())  # no batch will bring them
            raise

    def _absorb(self, reports: list[BadReport]) -> None:
        for report in reports:
            self.bad.absorb(report)

    def _unpacked(self, parcels: Iterator[Parcel], tape: Tape, used: int) -> Iterator[Any]:
        """Their batches; of the first one only what comes after its `used` samples."""
        for parcel in parcels:
            tape.took(parcel.start, parcel.end)
            if used:
                from fastclip.data.refill import rows

                batch = unpack(parcel)  # whose report was absorbed when it was taken before
                yield rows(batch, list(range(used, len(batch.keys))))
                used = 0
                continue
            tape.met(parcel.report)
            yield unpack(parcel)


class EvalLoader(Generic[Item]):
    """Every sample once, in order, the last batch (of each loader process) as small as it comes; on the device.

    `num_samples` is what the reference reports: for shards `--val-num-samples` or 0, else the number of files or rows.
    """

    def __init__(
        self,
        source: SampleSource,
        preparer: Preparer,
        *,
        num_samples: int,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.num_samples, self.bad = num_samples, BadSampleCounter()
        self._name, self._device, self._workers = source.name, device, workers
        self._stream = BatchStream(source, preparer, batch_size, EpochClock(0), partial=True)
        self._side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Item]:
        given = 0
        clock = self._stream.clock
        clock.open()
        processes = LoaderProcesses(self._stream, self._workers, persistent=False)
        ahead = Ahead(
            _with_reports(processes.parcels()), self._device, self._side_stream, processes.check
        )
        try:
            for batch, report in ahead:
                self.bad.absorb(report)
                if batch is not None:
                    given += len(batch.images)
                    self.bad.kept += len(batch.images)
                    yield batch
        finally:
            clock.close()
            ahead.close()
            processes.end()
        if not given:
            summary = self.bad.summary() or "it holds no samples"
            raise DataError(f"{self._name}: nothing to evaluate on ({summary})")


LabelledLoader = EvalLoader[LabelledBatch]


class _Reported(NamedTuple):
    batch: Any  # None: there is only something to report
    report: BadReport


def _with_reports(parcels: Iterator[Parcel]) -> Generator[_Reported, None, None]:
    for parcel in parcels:
        yield _Reported(unpack(parcel), parcel.report)
