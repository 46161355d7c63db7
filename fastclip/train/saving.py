"""Saves inside an epoch: when they are due, and the last one of a run that is told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import IntEnum

from fastclip.config.train_config import CheckpointConfig
from fastclip.errors import CannotWrite, Preempted
from fastclip.train.distributed import World
from fastclip.train.meters import StepClock
from fastclip.train.stop_request import Agreement, StopRequest

logger = logging.getLogger(__name__)

Write = Callable[[int, int], None]
"""Saves the run's state, which is inside an epoch after so many of its steps. A collective call; CannotWrite on the
first rank alone."""


class _Wish(IntEnum):
    NOTHING = 0
    SAVE = 1
    STOP = 2


class Saving:
    """Called after every step, by all ranks. Never waits for the device but to save."""

    def __init__(
        self,
        config: CheckpointConfig,
        world: World,
        stop: StopRequest,
        write: Write,
        clock: StepClock,
        *,
        steps_per_epoch: int,
    ) -> None:
        self._world, self._stop, self._write, self._clock = world, stop, write, clock
        self._steps_per_epoch = steps_per_epoch
        self._every_steps = config.save_every_n_steps
        minutes = config.save_every_minutes if world.is_first else 0
        self._seconds = minutes * 60 if minutes > 0 else float("inf")
        self._agreed = Agreement(world)
        self._saved = time.monotonic()

    def after_step(self, epoch: int, step: int) -> None:
        """`step` is the one just made. Raises Preempted."""
        wish = self._agreed(self._wish())
        made = self._steps_per_epoch * epoch + step + 1
        if wish == _Wish.STOP:
            self._save_and_stop(epoch, step + 1)
        elif wish == _Wish.SAVE or (self._every_steps and made % self._every_steps == 0):
            self._save(epoch, step + 1)

    def after_evaluation(self, epoch: int) -> None:
        """The end of the epoch just evaluated. One whose evaluation was broken off is evaluated by the next run."""
        self._agreed.forget()
        if self._world.largest(int(self._stop.requested)):
            self._save_and_stop(epoch, self._steps_per_epoch)

    def _wish(self) -> _Wish:
        if self._stop.requested:
            return _Wish.STOP
        due = time.monotonic() - self._saved > self._seconds
        return _Wish.SAVE if due else _Wish.NOTHING

    def _save(self, epoch: int, step: int) -> str | None:
        """None, or on all ranks why it failed. Training then goes on, and the next try is after the next interval."""
        self._agreed.forget()  # a wish that this save fulfils
        failure: str | None = None
        try:
            self._write(epoch, step)
        except CannotWrite as error:
            failure = str(error)
            logger.warning("%s. Training goes on; the next try is at the next save.", error)
        failure = self._world.from_first(failure)
        self._saved = time.monotonic()
        self._clock.start()  # the time that went by is no step's
        return failure

    def _save_and_stop(self, epoch: int, step: int) -> None:
        where = f"epoch {epoch} after step {step} of {self._steps_per_epoch}"
        logger.info("Told to stop: saving %s.", where)
        failure = self._save(epoch, step)
        if failure is not None:
            raise CannotWrite(f"told to stop in {where}, and {failure}")
        raise Preempted(
            f"told to stop, and saved {where}; go on with the same command and --resume latest"
        )
