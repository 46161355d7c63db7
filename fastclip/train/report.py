"""What a run says while it trains: the train line and scalars every n steps, and when to stop it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastclip.config.train_config import NonFinitePolicy
from fastclip.errors import NonFiniteTraining
from fastclip.optim.update import Update
from fastclip.train.distributed import World
from fastclip.train.log import TrainLine
from fastclip.train.meters import LossMeter, StepClock
from fastclip.train.step import StepResult
from fastclip.train.writers import Writers

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10


class Guard:
    """Ends a run whose updates are not finite. All ranks hold the same gradients, so all stop at the same step."""

    def __init__(self, update: Update, policy: NonFinitePolicy) -> None:
        self._update, self._policy = update, policy
        self.skipped = 0

    def check(self, epoch: int, step: int) -> None:
        """Reads the device. Raises NonFiniteTraining."""
        counts = self._update.read_skips()
        new, self.skipped = counts.total - self.skipped, counts.total
        if new == 0:
            return
        if self._policy == "stop" or counts.longest_run >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteTraining(
                f"epoch {epoch}, up to step {step}: {new} updates had a loss or gradient that is not finite, "
                f"{counts.longest_run} of them in a row; none was applied. Resume from the last checkpoint with a "
                "lower --lr, a longer --warmup or --grad-clip-norm"
            )
        logger.warning(
            "Epoch %d, up to step %d: %d updates were not finite and were skipped", epoch, step, new
        )


class Report:
    """Every `every` steps and at the end of an epoch: the only place in the loop that waits for the device."""

    def __init__(
        self,
        *,
        world: World,
        writers: Writers,
        guard: Guard,
        update: Update,
        clock: StepClock,
        every: int,
        epochs: int,
        steps_per_epoch: int,
        samples_per_step: int,
        samples_per_epoch: int,
        count_bad_samples: Callable[[], int],
        count_repeated: Callable[[], int],
        mfu_per_rate: float | None,  # per sample/s of one device
    ) -> None:
        self._world, self._writers, self._guard, self._update = world, writers, guard, update
        self._clock, self._every, self._epochs = clock, every, epochs
        self._steps_per_epoch, self._samples_per_step = steps_per_epoch, samples_per_step
        self._samples_per_epoch = samples_per_epoch
        self._count_bad_samples = count_bad_samples
        self._count_repeated = count_repeated
        self._mfu_per_rate = mfu_per_rate
        self._losses = LossMeter()

    def begin_epoch(self) -> None:
        self._losses = LossMeter()
        self._clock.start()

    def end_epoch(self, epoch: int) -> None:
        """Say which ranks ran short of samples. A collective call."""
        repeated = self._world.from_all(self._count_repeated())
        if any(repeated):
            ranks = ", ".join(f"rank {rank}: {n:,}" for rank, n in enumerate(repeated) if n)
            logger.info(
                "Epoch %d: %s samples were given again by loaders that had given all of their own (%s)",
                epoch,
                f"{sum(repeated):,}",
                ranks,
            )

    def flush(self) -> None:
        self._writers.flush()

    def state(self) -> dict[str, Any]:
        """For a run that goes on from here: see `load`."""
        return {"losses": self._losses.state(), "skipped": self._guard.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self._losses.load(state["losses"])
        self._guard.skipped = int(state["skipped"])

    def due(self, step: int) -> bool:
        return step % self._every == 0 or step + 1 == self._steps_per_epoch

    def write(self, epoch: int, step: int, result: StepResult) -> None:
        self._guard.check(epoch, step)
        if not self._world.is_first:
            self._clock.read_window()
            return
        self._losses.add({name: value.item() for name, value in result.losses.items()})
        logit_scale, grad_norm = result.logit_scale.item(), self._update.grad_norm.item()
        window = self._clock.read_window()
        global_step = epoch * self._steps_per_epoch + step
        steps_left = self._epochs * self._steps_per_epoch - global_step - 1
        line = TrainLine(
            epoch=epoch,
            step=step,
            steps_per_epoch=self._steps_per_epoch,
            samples_per_step=self._samples_per_step,
            samples_per_epoch=self._samples_per_epoch,
            world_size=self._world.size,
            data_time=window.data,
            batch_time=window.step,
            lr=self._update.optimizer.param_groups[0]["lr"],
            logit_scale=logit_scale,
            losses=self._losses.last,
            mean_losses={name: self._losses.mean(name) for name in self._losses.last},
            grad_norm=grad_norm,
            eta=steps_left * self._clock.median_step(),
            mfu=None
            if self._mfu_per_rate is None
            else self._mfu_per_rate * self._samples_per_step / self._world.size / window.step,
            skipped_updates=self._guard.skipped,
            bad_samples=self._count_bad_samples(),
        )
        logger.info("%s", line.text())
        self._writers.train(line.scalars(), global_step)
