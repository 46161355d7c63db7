"""Small loaders of test shards, and which samples their batches are of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import DataConfig
from fastclip.data import decode_dali
from fastclip.data.build import DataLoaders, build_data
from fastclip.data.position import DataPosition
from fastclip.data.tokenizer import ClipTokenizer

CPU = torch.device("cpu")
PREPROCESS = PreprocessConfig(size=(16, 20))
TOKENIZER = ClipTokenizer(context_length=12)
needs_dali = pytest.mark.skipif(
    decode_dali.available() is not None, reason=str(decode_dali.available())
)
DECODERS = ["pillow", pytest.param("dali", marks=needs_dali)]


def build(
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_epoch: int = 0,
    left: DataPosition | None = None,
    **options: Any,
) -> DataLoaders:
    """`options` are fields of DataConfig; batches of 4, by Pillow in this process where they say nothing else."""
    options = {"batch_size": 4, "workers": 0, "decoder": "pillow"} | options
    return build_data(
        DataConfig(**options),
        PREPROCESS,
        TOKENIZER,
        seed=seed,
        rank=rank,
        world_size=world_size,
        device=CPU,
        start_epoch=start_epoch,
        left=left,
    )


def numbers(texts: torch.Tensor) -> list[int]:
    """The sample numbers in the captions `caption NUMBER`."""
    return [
        int(TOKENIZER.decode(row[2:][row[2:] > 0][:-1].tolist()).replace(" ", "")) for row in texts
    ]


def epoch_of(loader, epoch: int) -> list[tuple[list[int], bytes]]:
    return [(numbers(texts), images.numpy().tobytes()) for images, texts in loader.epoch(epoch)]
