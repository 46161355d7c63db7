"""Evaluation after an epoch: rank 0 evaluates and writes, the others wait."""

from __future__ import annotations

import logging
from typing import Any, cast

from torch import nn

from fastclip.config.train_config import TrainConfig
from fastclip.data.build import DataLoaders
from fastclip.eval.encoder import ModelEncoder
from fastclip.eval.runner import Batches, EvalData, append_results, evaluate
from fastclip.train.distributed import World
from fastclip.train.precision import autocast_factory, input_dtype
from fastclip.train.run_folder import RunFolder
from fastclip.train.writers import Writers

logger = logging.getLogger(__name__)


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
    ) -> None:
        self._config, self._world, self._tokenizer = config, world, tokenizer
        self._folder, self._writers = folder, writers
        self._data = EvalData(
            val=cast("Batches | None", data.val),  # batches of evaluation are never packed
            imagenet_val=data.imagenet_val,
            imagenet_v2=data.imagenet_v2,
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
            self._evaluate(epoch, steps_per_epoch)
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
