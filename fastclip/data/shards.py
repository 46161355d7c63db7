"""Samples from webdataset shards: undecoded picture bytes and a caption, in a reproducible order.

Shard order, splitting over ranks and workers and the grouping of members into samples are the reference's. Members are
picked by name and nothing else in a shard is ever parsed; nothing is extracted to disk.
"""

from __future__ import annotations

import io
import itertools
import lzma
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from fastclip.data.bad_samples import (
    BAD_CAPTION,
    BAD_SHARD,
    CUT_SHARD,
    EMPTY_CAPTION,
    LARGE_MEMBER,
    NO_CAPTION,
    NO_PICTURE,
    BadSampleNotes,
)
from fastclip.data.shard_cache import CachedShard
from fastclip.data.shard_opener import open_shard
from fastclip.data.shard_spec import display, shard_name

# A sample's picture is the first of these that it has.
IMAGE_SUFFIXES = ("jpg", "png", "jpeg", "webp")
CAPTION_SUFFIX = "txt"
_WANTED = frozenset((*IMAGE_SUFFIXES, CAPTION_SUFFIX))

# Reference: the sizes of its two shuffle buffers.
SHARD_SHUFFLE, SHARD_SHUFFLE_INITIAL = 2000, 500
SAMPLE_SHUFFLE, SAMPLE_SHUFFLE_INITIAL = 5000, 1000
SHUFFLE_BYTES = 512 << 20  # ours: a buffer of very large pictures stops growing here
MAX_MEMBER_BYTES = 100 << 20

# Where a tar header has what (POSIX.1-1988, ustar).
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NUMBERS, _PREFIX = (slice(124, 136), slice(148, 156)), 345  # size and checksum
_BLANK_CHECKSUM = 8 * ord(" ")  # it is computed with itself blank

# Members that belong to the archive, not to a sample.
_META = re.compile(r"__[^/]*__($|/)")

Opener = Callable[[str], BinaryIO]  # of a shard's address; raises OSError


class RawSample(NamedTuple):
    image: bytes
    caption: str
    key: str  # "shard/key": names the sample in messages, and in the draws of its augmentation
    turn: str  # "" for the first time that an epoch serves this sample; another text for each further time


class Position(NamedTuple):
    """Whose samples, and when: all that may influence an order, beside the seed and the rank of a source."""

    epoch: int
    worker: int
    workers: int  # per rank, at least 1
    turn: int  # how often this worker has gone through its samples in this epoch


class TrainShards:
    """Every shard once a turn: shuffled, split over ranks and workers, samples shuffled."""

    def __init__(
        self,
        name: str,
        urls: tuple[str, ...],
        *,
        seed: int,
        rank: int,
        world_size: int,
        opener: Opener = open_shard,
    ) -> None:
        self.name, self.urls = name, urls
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._opener = opener

    def of_rank(self, rank: int, world_size: int) -> TrainShards:
        return TrainShards(
            self.name,
            self.urls,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
            opener=self._opener,
        )

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[RawSample]:
        urls = self.order(at)
        rng = sample_rng(self._seed, self._rank, at)
        turns = itertools.repeat(str(at.turn) if at.turn else "")
        samples = read_shards(zip(urls, turns, strict=False), notes, self._opener)
        return shuffle_samples(samples, rng, SAMPLE_SHUFFLE, SAMPLE_SHUFFLE_INITIAL)

    def order(self, at: Position) -> list[str]:
        """This worker's shards, in order: the same every turn, as in the reference."""
        urls = shuffled_shards(self.urls, self._seed + at.epoch)
        return urls[self._rank :: self._world_size][at.worker :: at.workers]


class ResampledShards:
    """Shards drawn with replacement, by weight where weights are given; a turn never ends."""

    def __init__(
        self,
        name: str,
        urls: tuple[str, ...],
        weights: tuple[float, ...] | None,
        *,
        seed: int,
        rank: int,
        opener: Opener = open_shard,
    ) -> None:
        self.name, self.urls, self._opener = name, urls, opener
        self._cumulative = None if weights is None else list(itertools.accumulate(weights))
        self._seed, self._rank = seed, rank

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[RawSample]:
        draws = self.order(at)
        owner = f"{self._rank}.{at.worker}"
        numbered = ((url, f"{owner}.{count}") for count, url in enumerate(draws))
        rng = sample_rng(self._seed, self._rank, at)
        samples = read_shards(numbered, notes, self._opener)
        return shuffle_samples(samples, rng, SAMPLE_SHUFFLE, SAMPLE_SHUFFLE_INITIAL)

    def order(self, at: Position) -> Iterator[str]:
        rng = random.Random(f"shards {self._seed} {at.epoch} {self._rank} {at.worker} {at.turn}")
        while True:
            if self._cumulative is None:
                yield rng.choice(self.urls)
            else:
                yield rng.choices(self.urls, cum_weights=self._cumulative)[0]


class EvalShards:
    """Every shard once, in the order given, split over the workers of the one rank that evaluates."""

    def __init__(self, name: str, urls: tuple[str, ...], opener: Opener = open_shard) -> None:
        self.name, self.urls, self._opener = name, urls, opener

    def read(self, at: Position, notes: BadSampleNotes) -> Iterator[RawSample]:
        mine = self.urls[at.worker :: at.workers]
        return read_shards(((url, "") for url in mine), notes, self._opener)


def sample_rng(seed: int, rank: int, at: Position) -> random.Random:
    return random.Random(f"samples {seed} {at.epoch} {rank} {at.worker} {at.turn}")


def shuffled_shards(urls: tuple[str, ...], seed: int) -> list[str]:
    """The reference's shard order for seed + epoch, the same on every rank and worker."""
    from webdataset.filters import shuffle

    stage = shuffle(bufsize=SHARD_SHUFFLE, initial=SHARD_SHUFFLE_INITIAL, rng=random.Random(seed))
    return list(stage(iter(urls)))


def shuffle_samples(
    samples: Iterator[RawSample],
    rng: random.Random,
    size: int,
    initial: int,
    max_bytes: int = SHUFFLE_BYTES,
) -> Iterator[RawSample]:
    """Samples in random order from a buffer that grows to `size` samples or `max_bytes` of pictures.

    As webdataset's: two samples go in for each that comes out until the buffer is full.
    """
    buffer: list[RawSample] = []
    held = 0
    for sample in samples:
        buffer.append(sample)
        held += len(sample.image)
        if len(buffer) < size and held < max_bytes:
            another = next(samples, None)
            if another is not None:
                buffer.append(another)
                held += len(another.image)
        if len(buffer) >= initial or held >= max_bytes:
            picked = _pick(buffer, rng)
            held -= len(picked.image)
            yield picked
    while buffer:
        yield _pick(buffer, rng)


def _pick(buffer: list[RawSample], rng: random.Random) -> RawSample:
    index = rng.randrange(len(buffer))
    buffer[index], buffer[-1] = buffer[-1], buffer[index]
    return buffer.pop()


def read_shards(
    urls_and_turns: Iterable[tuple[str, str]],
    notes: BadSampleNotes,
    opener: Opener = open_shard,
) -> Iterator[RawSample]:
    """The usable samples of each shard in turn. A shard that fails costs what is left of it, and a note."""
    for url, turn in urls_and_turns:
        try:
            stream = opener(url)
        except (OSError, ValueError) as error:
            # ValueError: webdataset knows no way to open such an address
            notes.note(BAD_SHARD, display(url), _in_words(error))
            continue
        notes.shards += 1
        try:
            with stream:
                whole = yield from _read_shard(stream, url, turn, notes)
                if isinstance(stream, CachedShard):
                    stream.ended(whole)
        except OSError as error:  # from closing: webdataset's programs tell there that they failed
            notes.note(BAD_SHARD, display(url), _in_words(error))


def _read_shard(
    stream: BinaryIO, url: str, turn: str, notes: BadSampleNotes
) -> Generator[RawSample, None, bool]:
    """Its usable samples. Returns whether the archive had an end."""
    name, whole = shard_name(url), True
    key = ""
    members: dict[
        str, bytes | None
    ] = {}  # by suffix; None: not wanted, but it counts for the grouping
    reader = _members(stream)
    while True:
        try:
            member = next(reader)
        except StopIteration:
            break
        except (
            tarfile.TarError,
            OSError,
            EOFError,
            ValueError,
            zlib.error,
            lzma.LZMAError,
        ) as error:
            # all but the first two: the decompressors and damaged numbers in a header
            cause = CUT_SHARD if members else BAD_SHARD
            notes.note(cause, display(url), _in_words(error))
            whole = False
            # What came whole before the cut is used; of a sample that the cut went through nothing is said.
            if members.keys() & _WANTED >= {CAPTION_SUFFIX} and any(
                members.get(suffix) is not None for suffix in IMAGE_SUFFIXES
            ):
                break
            return False
        if members and (member.key != key or member.suffix in members):
            # reference: a suffix that comes again starts a new sample
            yield from _sample(members, f"{name}/{key}", turn, notes)
            members = {}
        key = member.key
        if member.suffix in _WANTED and member.data is None:
            notes.note(LARGE_MEMBER, f"{name}/{key}", f"{member.suffix} of {member.size:,} bytes")
        members[member.suffix] = member.data
    if members:
        yield from _sample(members, f"{name}/{key}", turn, notes)
    return whole


def _sample(
    members: dict[str, bytes | None], key: str, turn: str, notes: BadSampleNotes
) -> Iterator[RawSample]:
    """One sample, or none and a note."""
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    caption = members.get(CAPTION_SUFFIX)
    if image is None or caption is None:
        if any(suffix in _WANTED and data is None for suffix, data in members.items()):
            return  # a member too large, already noted
        found = ", ".join(sorted(members))
        notes.note(NO_PICTURE if image is None else NO_CAPTION, key, f"its members are: {found}")
        return
    try:
        text = caption.decode("utf-8")
    except UnicodeDecodeError as error:
        notes.note(BAD_CAPTION, key, str(error))
        return
    if not text:
        notes.note(EMPTY_CAPTION, key)
    yield RawSample(image, text, key, turn)


class _Member(NamedTuple):
    key: str
    suffix: str  # lower case
    size: int  # bytes
    data: bytes | None  # None: not wanted, or too large


def _members(stream: BinaryIO) -> Iterator[_Member]:
    """Regular members in order, with their bytes where their suffix is wanted and their size sane."""
    from webdataset.tariterators import base_plus_ext  # splits at the first dot of the file name

    # Seekable files are not read where nothing is wanted; `|` reads on and on, as a pipe must.
    seekable = isinstance(stream, io.BufferedReader) and stream.seekable()
    mode = "r:*" if seekable else "r|*"
    offset = 0
    with tarfile.open(fileobj=stream, mode=mode, tarinfo=CheckedHeader) as archive:  # type: ignore[call-overload]
        try:
            for member in archive:
                offset = member.offset
                archive.members = []  # it would remember every header of the shard
                if not member.isreg() or _META.match(member.name):
                    continue  # links and devices lead elsewhere
                key, suffix = base_plus_ext(member.name)
                if key is None:
                    continue
                suffix = suffix.lower()
                data = None
                if (
                    suffix in _WANTED
                    and member.size <= MAX_MEMBER_BYTES
                    and (content := archive.extractfile(member)) is not None
                ):
                    data = content.read()
                yield _Member(key, suffix, member.size, data)
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"{error}, in what follows byte {offset:,}") from None


class CheckedHeader(tarfile.TarInfo):
    """A header that tells a damaged or cut archive from a finished one: plain tarfile ends silently at both."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:  # type: ignore[override]
        """Of regular files of short names, which samples mostly are, only what is used of them; the rest by tarfile."""
        kind, name = bytes(buf[156:157]), bytes(buf[:100]).partition(b"\0")[0]
        if (
            len(buf) == tarfile.BLOCKSIZE
            and kind in _FILES
            and not buf[_PREFIX]
            and name[-1:] != b"/"
        ):
            try:
                size, checksum = (int(bytes(buf[at]).partition(b"\0")[0], 8) for at in _NUMBERS)
            except ValueError:  # in another notation, or damaged
                return super().frombuf(buf, encoding, errors)
            if checksum == sum(buf) - sum(buf[_NUMBERS[1]]) + _BLANK_CHECKSUM and size >= 0:
                plain = cls(name.decode(encoding, errors))
                plain.size, plain.type = size, kind
                return plain
        return super().frombuf(buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            finished = (
                type(error).__name__ == "EOFHeaderError"
            )  # the block of zeros that ends an archive
            if finished or archive.offset == 0:
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None


def _in_words(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
