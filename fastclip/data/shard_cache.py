"""Copies of remote shards in a local folder, each made while its shard is read for the first time.

webdataset's own cache names a copy by the last part of its address, so that a/0.tar and b/0.tar are one, and hands
nothing on before the whole shard is there; hence this one. A copy gets its final name when it is whole and on the disk.
Names in the folder change only under its lock, and a copy in the making is locked too: by that others know it from
one that a killed process left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fastclip.data.shard_opener import open_shard
from fastclip.data.shard_spec import is_local, shard_name
from fastclip.errors import UserError

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 18
_STEP_BYTES = 16 << 20  # in such steps a copy takes its room in the folder
_SPARE_BYTES = 2 << 30  # left free on the disk
_LOCK = ".shard-cache-lock"
_IN_MAKING = "making-"
_NAME = re.compile(rf"({_IN_MAKING})?[0-9a-f]{{32}}-.*")  # other files in the folder are not ours


class ShardCache:
    """Opens the shards `urls` of a run through `folder`, where copies never take more than `max_bytes`.

    Copies of shards that are not among `urls` make room, the longest unused first; those of this run stay. So where
    a run's shards are larger than the folder may be, it finds the same part of them there in every epoch; if the least
    recently used made room, each copy would be gone before its turn came again.
    """

    def __init__(self, folder: Path, max_bytes: int, urls: Sequence[str]) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._own = frozenset(_copy_name(url) for url in urls if _is_remote(url))
        self._without: set[str] = set()  # names that no room was found for
        self._works = True  # until the disk fails

    def prepare(self) -> str:
        """Make the folder, within its bounds, and say what is in it. Raises UserError where that fails."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.alone():
                self._remove(self._unneeded(self._total() - self._max_bytes, also_own=True))
                files = self._files()
        except OSError as error:
            raise UserError(
                f"--shard-cache {self._folder}: {error.strerror}; give a folder on a local disk where you may write"
            ) from error
        return (
            f"shard cache {self._folder}: {len(self._own & files.keys()):,} of {len(self._own):,} remote shards are "
            f"there; it holds {self._total() / 1e9:.1f} of at most {self._max_bytes / 1e9:.1f} GB"
        )

    def open(self, url: str) -> BinaryIO:
        """The bytes of `url`, to be closed by the caller. Raises what `open_shard` raises."""
        if not _is_remote(url):
            return open_shard(url)
        path = self._folder / _copy_name(url)
        with contextlib.suppress(OSError):
            return self._open_copy(path)
        source = open_shard(url)
        copy = self._begin(path)
        if copy is None:
            return source
        copying = _Copying(source, copy)
        return CachedShard(copying, copying.ended)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process changes names or looks for room."""
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def make_room(self, more: int) -> bool:
        """Whether `more` bytes fit; other runs' copies go if that makes them fit. Call it `alone`."""
        if shutil.disk_usage(self._folder).free < more + _SPARE_BYTES:
            return False
        excess = self._total() + more - self._max_bytes
        unneeded = self._unneeded(excess)
        if sum(unneeded.values()) < excess:
            return False
        self._remove(unneeded)
        return True

    def no_room(self, path: Path) -> None:
        """Do not try to copy the shard of `path` again in this process."""
        self._without.add(path.name)

    def give_up(self, error: OSError) -> None:
        """Make no more copies in this process."""
        if self._works:
            logger.warning("shard cache %s: no copies are made any more: %s", self._folder, error)
        self._works = False

    def _open_copy(self, path: Path) -> CachedShard:
        def ended(whole: bool) -> None:
            if not whole:  # copies are of whole shards: the disk has damaged it
                with contextlib.suppress(OSError), self.alone():
                    path.unlink()

        copy = CachedShard(io.FileIO(path), ended)
        with contextlib.suppress(OSError):  # it may just have made room
            os.utime(path)  # last used
        return copy

    def _begin(self, path: Path) -> _Copy | None:
        """A copy in the making; None where that is not possible, or done by another process."""
        if not self._works or path.name in self._without:
            return None
        try:
            with self.alone():
                self._remove_abandoned()
                making = path.with_name(_IN_MAKING + path.name)
                if path.exists() or making.exists():
                    return None
                return _Copy(self, making, path)
        except OSError as error:
            self.give_up(error)
            return None

    def _unneeded(self, excess: int, *, also_own: bool = False) -> dict[str, int]:
        """Copies, by name with their bytes, that are together at least as large as `excess`, if there are such."""
        found: dict[str, int] = {}
        total = 0
        by_use = sorted(self._files().items(), key=lambda file: file[1].st_mtime)
        for own in (False, True) if also_own else (False,):
            for name, stat in by_use:
                if total >= excess:
                    return found
                if (name in self._own) == own and not name.startswith(_IN_MAKING):
                    found[name] = stat.st_size
                    total += stat.st_size
        return found

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        for name in self._files():
            if name.startswith(_IN_MAKING):
                # OSError: it is in use, or another user's
                with contextlib.suppress(OSError), (self._folder / name).open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (self._folder / name).unlink()

    def _total(self) -> int:
        return sum(stat.st_size for stat in self._files().values())

    def _files(self) -> dict[str, os.stat_result]:
        """Copies and copies in the making, by name."""
        found = {}
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if _NAME.fullmatch(entry.name) and entry.is_file():
                    found[entry.name] = entry.stat()
        return found


class CachedShard(io.BufferedReader):
    """A shard read through a cache.

    Whoever has read its archive, up to its end or to where it is damaged, calls `ended` with whether it was whole.
    """

    def __init__(self, raw: io.RawIOBase, ended: Callable[[bool], None]) -> None:
        super().__init__(raw, _BUFFER_BYTES)
        self.ended = ended


class _Copying(io.RawIOBase):
    """What `source` gives, written to `copy` too."""

    def __init__(self, source: BinaryIO, copy: _Copy) -> None:
        super().__init__()
        self._source, self._copy = source, copy
        # As `source` gives them: `read` would wait for all of them, and lose those that came before an error.
        self._read = getattr(source, "read1", source.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._read(len(buffer))
        buffer[: len(chunk)] = chunk
        self._copy.write(chunk)
        return len(chunk)

    def ended(self, whole: bool) -> None:
        if whole and self._copy.goes_on:
            with contextlib.suppress(OSError):  # of the source: its samples have all been read
                while self.read(_BUFFER_BYTES):  # what lies behind the end of the archive
                    pass
                self._copy.keep()

    def close(self) -> None:
        if not self.closed:
            self._copy.drop()
            self._source.close()
        super().close()


class _Copy:
    """A copy in the making, locked. No method raises: what goes wrong ends the copy."""

    def __init__(self, cache: ShardCache, making: Path, path: Path) -> None:
        self._cache, self._making, self._path = cache, making, path
        self._file: BinaryIO | None = making.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._written = self._room = 0

    @property
    def goes_on(self) -> bool:
        return self._file is not None

    def write(self, chunk: bytes) -> None:
        try:
            if self._file is None or not self._has_room(self._file, len(chunk)):
                return
            self._written += len(chunk)
            while chunk:  # a disk that is nearly full takes a part of it
                chunk = chunk[self._file.write(chunk) :]
        except OSError as error:
            self._fail(error)

    def keep(self) -> None:
        """Give it its final name."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._written)
            os.fsync(self._file.fileno())
            with self._cache.alone():
                self._making.rename(self._path)
            self._file.close()
            self._file = None
        except OSError as error:
            self._fail(error)

    def drop(self) -> None:
        """Remove it, unless it was kept."""
        if self._file is None:
            return
        with contextlib.suppress(OSError), self._cache.alone():
            self._making.unlink()
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None

    def _has_room(self, file: BinaryIO, more: int) -> bool:
        if self._written + more <= self._room:
            return True
        step = max(_STEP_BYTES, more)
        with self._cache.alone():
            if self._cache.make_room(step):
                self._room += step
                file.truncate(self._room)  # so that the others count it
                return True
        self._cache.no_room(self._path)
        self.drop()
        return False

    def _fail(self, error: OSError) -> None:
        self._cache.give_up(error)
        self.drop()


def _is_remote(url: str) -> bool:
    return not is_local(url) and not url.startswith("file://")


def _copy_name(url: str) -> str:
    """One name for each address; its readable part only helps who looks into the folder."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", shard_name(url))[-80:]
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:32]}-{readable}"
