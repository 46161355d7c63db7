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
        self.held = False  # the same on every rank

    def take(self, world: World) -> None:
        """Before this run looks for what to resume from: wait for another one to end. Nothing where there is no log
        yet. Raises FolderInUse, on every rank, where the other run goes on."""
        problem: str | None = None
        if world.is_first and self._path is not None and self._path.exists():
            problem = self._taken(self._path, _PATIENCE_SECONDS)
        self._agree(world, problem)

    def take_new(self, world: World) -> None:
        """Make the folder and the file where there were none. Raises FolderInUse, on every rank, where another run has
        done so since: what this one has read there is out of date."""
        problem: str | None = None
        if world.is_first and self._path is not None and not self.held:
            with contextlib.suppress(OSError):  # whoever makes the other folders will tell
                self._path.parent.mkdir(parents=True, exist_ok=True)
            problem = self._taken(self._path, 0.0)
            if problem is None and self._file is not None and self._path.stat().st_size:
                problem = self._problem(self._path, "another run began there just now")
                self.release()
        self._agree(world, problem)

    def release(self) -> None:
        self.held = False
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)  # loader processes have it open too
            self._file.close()
            self._file = None

    def _agree(self, world: World, problem: str | None) -> None:
        problem, self.held = world.from_first((problem, self.held))
        if problem is not None:
            raise FolderInUse(problem)

    def _taken(self, path: Path, patience: float) -> str | None:
        """What stands against it."""
        # OSError: no such locks on that filesystem; or the file cannot be opened, which whoever writes to it will tell.
        with contextlib.suppress(OSError):
            file = path.open("a")
            if not _locked_in_time(file, path.parent, patience):
                file.close()
                return self._problem(path, f"another run still writes there (it holds {path.name})")
            self._file = file
        self.held = True
        return None

    @staticmethod
    def _problem(path: Path, what: str) -> str:
        return f"{path.parent}: {what}. Stop that one first, or use --name to give this one another name"


def _locked_in_time(file: TextIO, folder: Path, patience: float) -> bool:
    """Raises OSError where files there cannot be locked."""
    end = time.monotonic() + patience
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if patience and not waits:
                logger.warning(
                    "%s: another run writes there; waiting for its end, %.0f s at most",
                    folder,
                    patience,
                )
            waits = True
        else:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_SECONDS)
