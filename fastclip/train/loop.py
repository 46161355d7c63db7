"""The training loop. Everything it calls was chosen in `setup.py`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fastclip.data.batch import Batch
from fastclip.train.setup import Run

logger = logging.getLogger(__name__)


def train(run: Run) -> None:
    for epoch in range(run.start_epoch, run.epochs):
        logger.info("Start epoch %d", epoch)
        train_epoch(run, epoch)
        run.report.end_epoch(epoch)
        run.save(epoch + 1)
        run.evaluate(epoch + 1)
        run.saving.after_evaluation(epoch)


def train_epoch(run: Run, epoch: int) -> None:
    done = run.begin_epoch(epoch)  # steps that another run made of it
    for i, batches in enumerate(micro_batches(run, epoch), done):
        run.clock.data_ready()
        run.before_step(run.steps_per_epoch * epoch + i)
        result = run.step(batches)  # forward, loss, backward, clip, update
        run.clock.step_done()
        run.progress.advance()
        if run.report.due(i):
            run.report.write(epoch, i, result)  # the only place that waits for the device
        run.saving.after_step(epoch, i)


def micro_batches(run: Run, epoch: int) -> Iterator[list[Batch]]:
    """Groups of --accum-freq batches; batches left over at the end of an epoch are not used (as the reference)."""
    group: list[Batch] = []
    for batch in run.batches(epoch):
        group.append(batch)
        if len(group) == run.accum_freq:
            yield group
            group = []
