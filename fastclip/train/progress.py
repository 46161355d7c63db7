"""A live bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    def begin_epoch(self, epoch: int, done: int) -> None:
        """`done` steps of it were made before."""
        ...

    def advance(self) -> None: ...

    def close(self) -> None: ...


class NoProgress:
    def begin_epoch(self, epoch: int, done: int) -> None:
        return

    def advance(self) -> None:
        return

    def close(self) -> None:
        return


class BarProgress:
    """One bar per epoch on stderr; log lines are written above it."""

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps = steps_per_epoch
        self._bar: tqdm[object] | None = None

    def begin_epoch(self, epoch: int, done: int) -> None:
        self.close()
        self._bar = tqdm(
            total=self._steps,
            initial=done,
            desc=f"epoch {epoch}",
            unit="step",
            leave=False,
            file=sys.stderr,
        )

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def make_progress(steps_per_epoch: int, *, first_rank: bool) -> Progress:
    return BarProgress(steps_per_epoch) if first_rank and sys.stderr.isatty() else NoProgress()
