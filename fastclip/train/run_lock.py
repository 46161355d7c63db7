"""One run at a time writes to LOGS/NAME.

A job that is started anew may meet what is left of the one before: ranks that still save, or a job on another machine
that was taken for dead. Both would write the same log and the same checkpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from pathlib import Path
from typing import TextIO

from fastclip.errors import CannotWrite
from fastclip.train.distributed import World

_PATIENCE_SECONDS = 60.0  # a run that is told to stop has half of that to save in
_LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


class FolderInUse(CannotWrite):
    """Another run writes to this run's folder."""


class RunLock:
    """Rank 0's hold on its log file. The system lets go of it when the last process of the rank has ended, however."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None

    def take(self, world: World, *, create: bool = False) -> None:
        """Wait for another run to end, and hold the file; called again, keep it. A file that is not there is made or
        left alone. Raises FolderInUse, on every rank, where the other run goes on."""
        problem: str | None = None
        if world.is_first and self._path is not None and (create or self._path.exists()):
            problem = self._taken(self._path)
        problem = world.from_first(problem)
        if problem is not None:
            raise FolderInUse(problem)

    def release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # loader processes have it open too
            self._file.close()
            self._file = None

    def _taken(self, path: Path) -> str | None:
        """What stands against it."""
        if self._file is not None:
            return None
        # OSError: no such locks on that filesystem; or the file cannot be opened, which whoever writes to it will tell.
        with contextlib.suppress(OSError):
            file = path.open("a")
            if not _locked_in_time(file, path.parent):
                file.close()
                return (
                    f"{path.parent}: another run still writes there (it holds {path.name}). "
                    "Stop that one first, or use --name to give this one another name"
                )
            self._file = file
        return None


def _locked_in_time(file: TextIO, folder: Path) -> bool:
    """Raises OSError where files there cannot be locked."""
    end = time.monotonic() + _PATIENCE_SECONDS
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                logger.warning(
                    "%s: another run writes there; waiting for its end, %.0f s at most",
                    folder,
                    _PATIENCE_SECONDS,
                )
            waits = True
        else:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_SECONDS)
