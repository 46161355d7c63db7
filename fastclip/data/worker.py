"""What a loader process does: read samples, make them ready, put full batches together.

A batch is always full: a picture that cannot be used is noted and the next sample takes its place.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fastclip import errors
from fastclip.data.bad_samples import BAD_PICTURE, CHANGED_DATA, BadReport, BadSampleNotes
from fastclip.data.batch import Batch, EncodedBatch
from fastclip.data.dali_form import dali_form
from fastclip.data.decode_pillow import EvalDecoder, TrainDecoder
from fastclip.data.draws import AugmentSampler, Draw, stack
from fastclip.data.erase import RandomErasing
from fastclip.data.image_header import BadImage, ImageHeader, header_of, open_image, read_header
from fastclip.data.position import LoaderPosition, Place
from fastclip.data.shard_opener import end_programs
from fastclip.data.shards import Position, RawSample
from fastclip.errors import DataError, FastclipError

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

Tokenizer = Callable[[list[str]], Tensor]  # texts to int64 (n, context_length)
MakeBatch = Callable[[Tensor, Tensor], Batch]  # of images and those ids, packed or as they are


class SampleSource(Protocol):
    """A dataset as one loader process sees it."""

    name: str  # how messages call it: flag and value

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[Any]:
        """The samples of one turn, usable as far as can be told without decoding them."""
        ...


class Preparer(Protocol):
    """Makes samples ready and puts them together: what differs between decoders and between training and not."""

    def prepare(self, sample: Any, epoch: int) -> Any:
        """One sample of a batch. Raises BadImage."""
        ...

    def collate(self, items: list[Any]) -> Any: ...


class Parcel(NamedTuple):
    """What a loader process sends: a batch, or an error for the user; and what it met on the way."""

    batch: Any
    report: BadReport
    failure: tuple[str, str] | None = None  # class name of a FastclipError, and its line
    start: Place = Place()  # where its process was before this batch, and after it
    end: Place = Place()


class EpochClock:
    """Which epoch the loader processes work on; shared memory, so that lasting processes see it change."""

    def __init__(self, epoch: int) -> None:
        self._epoch = multiprocessing.Value("q", epoch, lock=False)
        self._ticket = multiprocessing.Value("q", 0, lock=False)
        self._resumed = multiprocessing.Value("b", 0, lock=False)
        self._closed = multiprocessing.Value("b", 0, lock=False)
        # multiprocessing ends this process's children at its exit, and they must let it.
        multiprocessing.util.Finalize(self, _set, (self._closed,), exitpriority=10)

    @property
    def resumed(self) -> bool:
        """Whether the epoch begins where another run left it."""
        return bool(self._resumed.value)

    @property
    def closed(self) -> bool:
        """Whether the loader processes are to end."""
        return bool(self._closed.value)

    @property
    def epoch(self) -> int:
        return int(self._epoch.value)

    @property
    def ticket(self) -> int:
        """Changes whenever the batches under way have become useless."""
        return int(self._ticket.value)

    def start(self, epoch: int, *, resumed: bool) -> None:
        self._epoch.value = epoch
        self._resumed.value = resumed
        self._ticket.value += 1

    def stop(self) -> None:
        self._ticket.value += 1

    def open(self) -> None:
        self._closed.value = 0

    def close(self) -> None:
        _set(self._closed)


def _set(flag: Any) -> None:
    flag.value = 1


class BatchStream(IterableDataset[Parcel]):
    """The batches of one loader process, iterated inside it.

    `quota(worker, workers)` is how many it gives an epoch; None: as many as are asked for. With `partial` one turn is
    read and the last batch may be smaller (evaluation); else turn follows turn. `start` is where an epoch begins that
    the clock calls resumed.
    """

    def __init__(
        self,
        source: SampleSource,
        preparer: Preparer,
        batch_size: int,
        clock: EpochClock,
        quota: Callable[[int, int], int] | None = None,
        partial: bool = False,
        start: LoaderPosition | None = None,
    ) -> None:
        super().__init__()
        self._source, self._preparer = source, preparer
        self._batch_size, self.clock = batch_size, clock
        self._quota, self._partial, self._start = quota, partial, start

    def __iter__(self) -> Iterator[Parcel]:
        info = get_worker_info()
        slot, workers = (0, 1) if info is None else (info.id, info.num_workers)
        start = self._start if self.clock.resumed else None
        if start is None:
            start = LoaderPosition.beginning(self.clock.epoch, workers)
        # DataLoader asks its first process first, and the batch that is due is worker `parcels % workers`'s.
        worker = (slot + start.parcels) % workers
        given = len(range(worker, start.parcels, workers))
        place = start.places[worker]
        notes = BadSampleNotes(self._source.name)
        notes.good = given * self._batch_size
        batches = self._batches(self.clock.epoch, worker, workers, notes, place)
        if self._quota is not None:
            batches = itertools.islice(batches, self._quota(worker, workers) - given)
        try:
            for batch, end in batches:
                yield Parcel(batch, notes.take(), start=place, end=end)
                place = end
            report = notes.take()
            if report.counts and self._partial:
                yield Parcel(None, report)  # met after the last batch
        except FastclipError as error:
            yield Parcel(None, notes.take(), (type(error).__name__, str(error)))

    def _batches(
        self, epoch: int, worker: int, workers: int, notes: BadSampleNotes, place: Place
    ) -> Iterator[tuple[Any, Place]]:
        """The batches after `place`, each with the place after it."""
        ticket = self.clock.ticket
        size = self._batch_size
        items: list[Any] = []
        for turn in itertools.count(place.turn):
            good_before, gave_batch = notes.good, place.read > 0
            samples = self._source.read(Position(epoch, worker, workers, turn), notes)
            self._read_up_to(place, samples, notes, ticket)
            for read, sample in enumerate(samples, place.read + 1):
                if self.clock.ticket != ticket:
                    return
                try:
                    items.append(self._preparer.prepare(sample, epoch))
                except BadImage as error:
                    notes.note(BAD_PICTURE, sample.key, error.cause)
                    continue
                notes.good += 1
                if len(items) == size:
                    yield self._preparer.collate(items), Place(turn, read, sample.key)
                    items, gave_batch = [], True
            if self._partial:
                if items:
                    yield self._preparer.collate(items), Place(turn)
                return
            if notes.good == good_before and not gave_batch:
                raise notes.hopeless()
            # reference: what fills no batch at the end of a turn is dropped. Where a turn fills none at all
            # the reference would turn for ever; there the samples are kept for the next.
            if gave_batch:
                items = []
            place = Place()  # further turns are read from their beginning

    def _read_up_to(
        self, place: Place, samples: Iterator[Any], notes: BadSampleNotes, ticket: int
    ) -> None:
        """Read once more, and prepare none of, the samples of a turn that came before `place`."""
        if not place.read:
            return
        last = ""
        for sample in itertools.islice(samples, place.read):
            if self.clock.ticket != ticket:
                return
            last = sample.key
        notes.take()  # told before the run was left
        if last != place.last:
            notes.note(CHANGED_DATA, place.last, f"found {last or 'the end of the data'} there")


class PillowTrain:
    """Decodes and augments in the loader process."""

    def __init__(
        self,
        sampler: AugmentSampler,
        decoder: TrainDecoder,
        erasing: RandomErasing | None,
        tokenizer: Tokenizer,
        make_batch: MakeBatch = Batch,
    ) -> None:
        self._sampler, self._decoder, self._erasing = sampler, decoder, erasing
        self._tokenizer, self._make_batch = tokenizer, make_batch

    def prepare(self, sample: RawSample, epoch: int) -> tuple[np.ndarray, int, str]:
        image = open_image(sample.image)
        draw = draw_for(self._sampler, sample, header_of(image, sample.image), epoch)
        return self._decoder.augmented(image, draw), draw.erase, sample.caption

    def collate(self, items: list[tuple[np.ndarray, int, str]]) -> Batch:
        images = stack_images([item[0] for item in items])
        if self._erasing is not None:
            images = self._erasing(images, torch.tensor([item[1] for item in items]))
        return self._make_batch(images, self._tokenizer([item[2] for item in items]))


class EncodedTrain:
    """Draws in the loader process and leaves the decoding to the main one."""

    def __init__(self, sampler: AugmentSampler, tokenizer: Tokenizer) -> None:
        self._sampler, self._tokenizer = sampler, tokenizer

    def prepare(self, sample: RawSample, epoch: int) -> tuple[RawSample, Draw]:
        draw = draw_for(self._sampler, sample, read_header(sample.image), epoch)
        return sample._replace(image=dali_form(sample.image)), draw

    def collate(self, items: list[tuple[RawSample, Draw]]) -> EncodedBatch:
        samples = [sample for sample, _ in items]
        lengths = [len(sample.image) for sample in samples]
        offsets = torch.zeros(len(items) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor(lengths), 0, out=offsets[1:])
        encoded = torch.frombuffer(
            bytearray(b"".join(sample.image for sample in samples)), dtype=torch.uint8
        )
        texts = self._tokenizer([sample.caption for sample in samples])
        draws = stack([draw for _, draw in items])
        return EncodedBatch(encoded, offsets, draws, texts, [sample.key for sample in samples])


class EvalPreparer:
    """Decodes for evaluation: resize and crop, nothing random."""

    def __init__(self, decoder: EvalDecoder, tokenizer: Tokenizer) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer

    def prepare(self, sample: RawSample, epoch: int) -> tuple[np.ndarray, str]:
        return self._decoder(sample.image), sample.caption

    def collate(self, items: list[tuple[np.ndarray, str]]) -> Batch:
        images = stack_images([item[0] for item in items])
        return Batch(images, self._tokenizer([item[1] for item in items]))


def draw_for(sampler: AugmentSampler, sample: RawSample, header: ImageHeader, epoch: int) -> Draw:
    """What happens to this sample this time: a sample served again in an epoch gets another draw, as in the
    reference."""
    key = f"{sample.key}#{sample.turn}" if sample.turn else sample.key
    return sampler(epoch, key, header.height, header.width)


def stack_images(images: list[np.ndarray]) -> Tensor:
    """uint8 (B, H, W, 3)."""
    return torch.from_numpy(np.stack(images))


def unpack(parcel: Parcel) -> Any:
    """The batch of a parcel; raises the error that it carries in its stead."""
    if parcel.failure is None:
        return parcel.batch
    kind, line = parcel.failure
    raise getattr(errors, kind, DataError)(line)


def set_up_worker(_: int) -> None:
    """Run first in every loader process: end quietly, and take the programs it started along."""
    # Ctrl-C reaches the whole terminal group, and a batch system's warning every process of a job: the main process
    # decides when its loaders end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    _end_with_parent()
    multiprocessing.util.Finalize(None, end_programs, exitpriority=100)


def _terminate(*_: object) -> None:
    stream = getattr(get_worker_info(), "dataset", None)
    if _has_parent() and isinstance(stream, BatchStream) and not stream.clock.closed:
        return  # the main process has a step to finish
    end_programs()
    os._exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """Linux tells this process at once when the main one is gone, kill -9 or not; torch looks every few seconds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if not _has_parent():  # gone before that
        os._exit(128 + signal.SIGTERM)


def _has_parent() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and parent.pid == os.getppid()


def identity(parcel: Any) -> Any:
    """In place of DataLoader's collating, which would take the named tuples apart."""
    return parcel
