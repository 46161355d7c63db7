"""The run's model, set up for training as the run would set it up, on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from fastclip.config.train_config import TrainConfig
from fastclip.data.packing import PackRule
from fastclip.errors import UserError
from fastclip.model.factory import create_training_model, is_native
from fastclip.train.attention import set_up_attention
from fastclip.train.packed_captions import choose_packing
from fastclip.train.parts import prepare_for_training
from fastclip_kernels.self_attention.sdpa import SDPA

_CPU = torch.device("cpu")


def prepared_on_meta(config: TrainConfig, *, for_cpu: bool) -> tuple[Any, PackRule | None]:
    """Model, and how its captions are packed. UserError for what cannot be planned."""
    if not is_native(config.model.name):
        raise UserError(
            f"--dry-run: {config.model.name} is one of open_clip's own models; only fastclip's can be planned"
        )
    if config.loss.distill:
        raise UserError("--dry-run cannot plan distillation: leave --distill-model out")
    with torch.device("meta"):
        model: Any = create_training_model(
            config.model, config.precision, "meta", config.loss.siglip, load_weights=False
        )
    prepare_for_training(model, config.model)
    pack = choose_packing(model, None, config)
    if for_cpu:
        packed = pack is not None
        set_up_attention(model, None, config, _CPU, packed=packed, teacher_packed=False)
    else:
        model.use_attention(SDPA, SDPA)  # the products of whichever kernel the GPU will run
    return model, pack
