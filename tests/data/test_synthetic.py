"""Synthetic data promises: black pictures and the reference's caption, as many as asked for."""

from __future__ import annotations

import pytest
import torch

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.config.train_config import DataConfig
from fastclip.data import decode_dali
from fastclip.data.build import build_data
from fastclip.data.tokenizer import ClipTokenizer
from fastclip.errors import UserError

JITTER = AugmentConfig(scale=(0.4, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.1), use_timm=True)


def build(decoder="pillow", samples=20, **options):
    cfg = DataConfig(
        dataset_type="synthetic",
        train_num_samples=samples,
        batch_size=6,
        workers=0,
        augment=JITTER,
        decoder=decoder,
        **options,
    )
    return build_data(
        cfg,
        PreprocessConfig(size=(24, 32)),
        ClipTokenizer(context_length=16),
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("decoder", ["pillow", "dali"])
def test_every_batch_is_black_with_the_references_caption(decoder):
    if decoder == "dali" and (reason := decode_dali.available()):
        pytest.skip(reason)
    loader = build(decoder).train
    assert (loader.num_batches, loader.num_samples) == (
        3,
        20,
    )  # reference: drops what fills no batch
    batches = list(loader.epoch(0))
    loader.close()
    assert len(batches) == 3
    for images, texts in batches:
        assert images.shape == (6, 24, 32, 3)
        assert images.dtype == torch.uint8
        assert not images.any()
        assert torch.equal(texts, ClipTokenizer(context_length=16)(["Dummy caption"] * 6))


def test_without_a_number_of_samples_it_names_the_flag():
    with pytest.raises(UserError, match="--train-num-samples"):
        build(samples=None)
