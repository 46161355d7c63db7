"""Copies of remote shards in a local folder, each made while its shard is read for the first time.

webdataset's own cache names a copy by the last part of its address, so that a/0.tar and b/0.tar are one, and hands
nothing on before the whole shard is there; hence this one. A copy gets its final name when it is whole and on the disk.
In the making it is locked: by that other processes know it from one that a killed process left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fastclip.data.shard_opener import open_shard
from fastclip.data.shard_spec import is_local, shard_name
from fastclip.errors import UserError

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 18
_STEP_BYTES = 64 << 20  # in such steps a copy takes its room in the folder
_IN_MAKING = ".part"
_LOCK = ".lock"


class ShardCache:
    """Opens the shards `urls` of a run through `folder`, whose files never take more than `max_bytes`.

    Copies of shards that are not among `urls` make room, the longest unused first; those of this run stay. So where
    a run's shards are larger than the folder may be, it finds the same part of them there in every epoch; if the least
    recently used made room, each copy would be gone before its turn came again.
    """

    def __init__(self, folder: Path, max_bytes: int, urls: Sequence[str]) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._own = frozenset(_copy_name(url) for url in urls if _is_remote(url))
        self._works = True  # until the disk fails

    def prepare(self) -> str:
        """Make the folder, and say what is in it. Raises UserError where nothing can be written there."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                files = self._files()
        except OSError as error:
            raise UserError(
                f"--shard-cache {self._folder}: {error.strerror}; give a folder on a local disk"
            ) from error
        return (
            f"shard cache {self._folder}: {len(self._own & files.keys()):,} of {len(self._own):,} remote shards are "
            f"there; it holds {_total(files) / 1e9:.1f} of at most {self._max_bytes / 1e9:.1f} GB"
        )

    def open(self, url: str) -> BinaryIO:
        """The bytes of `url`, to be closed by the caller. Raises what `open_shard` raises."""
        if not _is_remote(url):
            return open_shard(url)
        path = self._folder / _copy_name(url)
        with contextlib.suppress(OSError):
            stream = path.open("rb")
            with contextlib.suppress(OSError):  # it has just made room
                os.utime(path)  # last used
            return stream
        source = open_shard(url)
        try:
            part = _locked(path.with_name(path.name + _IN_MAKING)) if self._works else None
        except OSError as error:
            self.give_up(error)
            part = None
        return source if part is None else CopyingReader(_Copying(self, source, part, path))

    def has_room(self, more: int, growing: Path) -> bool:
        """Whether `more` bytes fit beside what is there. Removes what makes room for them."""
        files = self._files()
        total = _total(files)
        for name, stat in sorted(files.items(), key=lambda file: file[1].st_mtime):
            path = self._folder / name
            if name.endswith(_IN_MAKING):
                removed = path != growing and _remove_abandoned(path)
            else:
                removed = total + more > self._max_bytes and name not in self._own
                if removed:
                    path.unlink(missing_ok=True)
            total -= removed * stat.st_size
        return total + more <= self._max_bytes

    def grow(self, part: BinaryIO, path: Path, size: int) -> bool:
        """Make the copy in the making at `path` `size` bytes large; False where that does not fit."""
        with self._alone():
            fits = self.has_room(size - os.fstat(part.fileno()).st_size, path)
            if fits:
                part.truncate(size)
            return fits

    def give_up(self, error: OSError) -> None:
        """Make no more copies in this process."""
        logger.warning("shard cache %s: no copies are made any more: %s", self._folder, error)
        self._works = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process looks for room."""
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _files(self) -> dict[str, os.stat_result]:
        """Copies and copies in the making, by name."""
        found = {}
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name != _LOCK and entry.is_file():
                    found[entry.name] = entry.stat()
        return found


class CopyingReader(io.BufferedReader):
    """Reads a shard and copies what it reads. Closed without `keep`, it leaves no copy."""

    raw: _Copying

    def __init__(self, raw: _Copying) -> None:
        super().__init__(raw, _BUFFER_BYTES)

    def keep(self) -> None:
        """Read what lies behind the end of the archive, and keep the copy."""
        with contextlib.suppress(OSError):  # of the source: its samples have all been read
            while self.read(_BUFFER_BYTES):
                pass
            self.raw.keep()


class _Copying(io.RawIOBase):
    """`source`, written to the locked file `part`, which is in the end renamed to `path`."""

    def __init__(self, cache: ShardCache, source: BinaryIO, part: BinaryIO, path: Path) -> None:
        super().__init__()
        self._cache, self._source, self._path = cache, source, path
        self._part: BinaryIO | None = part
        self._part_path = path.with_name(path.name + _IN_MAKING)
        self._written = self._room = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._source.read(len(buffer))
        buffer[: len(chunk)] = chunk
        if self._part is not None:
            with self._dropping_what_fails():
                self._write(self._part, chunk)
        return len(chunk)

    def keep(self) -> None:
        if self._part is not None:
            with self._dropping_what_fails():
                self._part.truncate(self._written)
                os.fsync(self._part.fileno())
                self._part_path.rename(self._path)
                self._part.close()
                self._part = None

    def close(self) -> None:
        if not self.closed:
            self._drop()
            self._source.close()
        super().close()

    def _write(self, part: BinaryIO, chunk: bytes) -> None:
        if self._written + len(chunk) > self._room:
            self._room += max(_STEP_BYTES, len(chunk))
            if not self._cache.grow(part, self._part_path, self._room):
                self._drop()
                return
        self._written += len(chunk)
        while chunk:  # a disk that is nearly full takes a part of it
            chunk = chunk[part.write(chunk) :]

    @contextlib.contextmanager
    def _dropping_what_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._drop()
            self._cache.give_up(error)

    def _drop(self) -> None:
        if self._part is not None:
            self._part_path.unlink(missing_ok=True)  # before the lock goes
            self._part.close()
            self._part = None


def _locked(path: Path) -> BinaryIO | None:
    """An empty file at `path`, locked; None where another process has it."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had the lock before may have renamed or removed what was opened here.
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return None
        except (BlockingIOError, FileNotFoundError):
            return None
        file.truncate(0)
        stack.pop_all()
        return file


def _opened(path: Path) -> BinaryIO:
    """For writing; made if it is not there, not emptied if it is."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _remove_abandoned(path: Path) -> bool:
    """Remove the copy in the making at `path` if no process has it locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()  # with the lock held, or its next owner would be robbed
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def _is_remote(url: str) -> bool:
    return not is_local(url) and not url.startswith("file://")


def _copy_name(url: str) -> str:
    """One name for each address; its readable part only helps who looks into the folder."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", shard_name(url))[-80:]
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:32]}-{readable}"


def _total(files: dict[str, os.stat_result]) -> int:
    return sum(stat.st_size for stat in files.values())
