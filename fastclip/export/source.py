"""What is exported: the model of some flags, with the weights of a checkpoint, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.config.images import PreprocessConfig
from fastclip.config.tokenizers import TokenizerSpec
from fastclip.config.train_config import ModelConfig
from fastclip.data.tokenizer import Tokenizer, build_tokenizer
from fastclip.errors import DataError
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.model.factory import create_training_model
from fastclip.model.model_config import tokenizer_spec
from fastclip.model.state_dict import bare_state_dict, load_state

_POSITIONS = "positional_embedding"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model in evaluation mode, fp32, on the CPU, and what belongs to it."""

    config: ModelConfig
    epoch: int | None  # completed ones, where the checkpoint says
    model: nn.Module
    spec: TokenizerSpec
    tokenizer: Tokenizer

    @property
    def preprocess(self) -> PreprocessConfig:
        visual: Any = self.model.visual
        preprocess: PreprocessConfig = visual.preprocess_cfg
        return preprocess

    @property
    def has_logit_bias(self) -> bool:
        return getattr(self.model, "logit_bias", None) is not None


def load_source(config: ModelConfig, checkpoint: Path) -> Source:
    """The model that `config` describes with the weights of `checkpoint`, which never runs code.

    A logit bias is made where the checkpoint has one. Patch dropout is of training and left out.
    Raises UserError, InputMissing, EnvironmentProblem as `create_model`; DataError for weights that
    do not fit, positions of another size among them, or are not finite.
    """
    content = read_checkpoint(checkpoint)
    state = bare_state_dict(content, str(checkpoint))
    epoch = content.get("epoch")
    del content  # the optimiser's state, twice the size of the model
    _check_finite(state, checkpoint)
    model = create_training_model(
        replace(config, pretrained="", force_patch_dropout=None),
        "fp32",
        "cpu",
        siglip="logit_bias" in state,
        load_weights=False,
    )
    _check_positions(model.state_dict(), state, checkpoint)
    load_state(model, state, str(checkpoint), fit=True)
    spec = tokenizer_spec(
        config.name,
        context_length=config.force_context_length,
        tokenizer_file=config.tokenizer,
        cache_dir=config.cache_dir,
    )
    return Source(
        config=config,
        epoch=epoch if isinstance(epoch, int) else None,
        model=model.eval(),
        spec=spec,
        tokenizer=build_tokenizer(spec),
    )


def _check_finite(state: Mapping[str, Tensor], checkpoint: Path) -> None:
    bad = [
        name
        for name, value in state.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not torch.isfinite(value).all()
    ]
    if bad:
        raise DataError(
            f"{checkpoint}: {len(bad)} of {len(state)} tensors hold NaN or infinity, {bad[0]} first: "
            "export an earlier checkpoint"
        )


def _check_positions(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], checkpoint: Path
) -> None:
    """`--pretrained` resamples positions of another size; here they mean that a flag is missing."""
    ours = {name.removeprefix("text."): value for name, value in wanted.items()}
    for name, value in state.items():
        bare = name.removeprefix("text.")
        if bare.endswith(_POSITIONS) and bare in ours and ours[bare].shape != value.shape:
            flag = "--force-image-size" if bare.startswith("visual.") else "--force-context-length"
            raise DataError(
                f"{checkpoint}: {name} is {tuple(value.shape)}, the model's {tuple(ours[bare].shape)}: "
                f"give the run's {flag}, or its folder with --run"
            )
