"""Evaluation after an epoch: rank 0 evaluates and writes, the others wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from fastclip.config.train_config import TrainConfig
from fastclip.data.build import DataLoaders
from fastclip.eval.encoder import ModelEncoder
from fastclip.eval.runner import Batches, EvalData, append_results, evaluate
from fastclip.train.distributed import World
from fastclip.train.precision import autocast_factory, input_dtype
from fastclip.train.run_folder import RunFolder
from fastclip.train.stop_request import StopRequest
from fastclip.train.writers import Writers

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """Evaluation is given up: the run is to stop."""


class _UntilStopped:
    """The batches of an evaluation, up to a request to stop."""

    def __init__(self, batches: Batches, stop: StopRequest) -> None:
        self._batches, self._stop = batches, stop

    @property
    def num_samples(self) -> int:
        return self._batches.num_samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            if self._stop.requested:
                raise _Stopped
            yield batch


class Evaluation:
    def __init__(
        self,
        config: TrainConfig,
        world: World,
        model: nn.Module,
        data: DataLoaders,
        tokenizer: Any,
        folder: RunFolder,
        writers: Writers,
        stop: StopRequest,
    ) -> None:
        self._config, self._world, self._tokenizer = config, world, tokenizer
        self._folder, self._writers = folder, writers

        def until_stopped(batches: Batches | None) -> Batches | None:
            return None if batches is None else _UntilStopped(batches, stop)

        self._data = EvalData(
            val=until_stopped(cast("Batches | None", data.val)),  # never packed in evaluation
            imagenet_val=until_stopped(data.imagenet_val),
            imagenet_v2=until_stopped(data.imagenet_v2),
        )
        self._encoder = ModelEncoder(
            model,
            device=world.device,
            autocast=autocast_factory(config.precision, world.device),
            image_dtype=input_dtype(config.precision),
        )

    def run(self, epoch: int, *, steps_per_epoch: int = 0) -> None:
        """`epoch` is the number of completed ones. Everything is due after the last, or where nothing is trained."""
        if self._world.is_first:
            try:
                self._evaluate(epoch, steps_per_epoch)
            except _Stopped:
                logger.warning("Told to stop: the evaluation of epoch %d is given up.", epoch)
        self._world.wait_for_all()

    def _evaluate(self, epoch: int, steps_per_epoch: int) -> None:
        with self._encoder.evaluating():
            metrics = evaluate(
                self._encoder,
                self._data,
                epoch=epoch,
                final=epoch >= self._config.epochs or not self._config.trains,
                config=self._config.evaluation,
                tokenizer=self._tokenizer,
                log=logger.info,
            )
        if metrics and self._config.log.enabled:
            self._writers.evaluation(metrics, epoch, steps_per_epoch * epoch)
            append_results(self._folder.checkpoints, metrics)
