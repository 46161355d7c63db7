"""Fitting a state dict to a model: prefixes, layouts, logit shapes, position grids."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.errors import DataError

logger = logging.getLogger(__name__)

_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_TEXT_PARTS = (
    "positional_embedding",
    "text_projection",
    "token_embedding.",
    "transformer.",
    "ln_final.",
)


def bare_state_dict(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint, under the names of an unwrapped model.

    Accepts a trainer's checkpoint or a bare state dict, with or without the prefixes that
    DistributedDataParallel and torch.compile add. DataError if there are none; `source` is named
    in it.
    """
    state = checkpoint.get("state_dict", checkpoint)
    tensors = isinstance(state, Mapping) and any(isinstance(v, Tensor) for v in state.values())
    if not tensors:
        entries = ", ".join(map(str, list(checkpoint)[:5]))
        raise DataError(f"{source}: holds no model weights (entries: {entries})")
    return {_without_wrappers(key): value for key, value in state.items()}


def _without_wrappers(key: str) -> str:
    while key.startswith(_WRAPPER_PREFIXES):
        key = key.partition(".")[2]
    return key


def load_state(
    model: nn.Module, state_dict: Mapping[str, Any], source: str, *, fit: bool = False
) -> None:
    """Copy a state dict (or a trainer's checkpoint) into an unwrapped model, strictly.

    `fit=False` is for resuming: only wrappers' prefixes are undone. `fit=True` is for
    `--pretrained` and also converts between the two text layouts, reshapes logit scale and bias,
    and resizes position embeddings. DataError that shows the first five differences; then the
    model is unchanged.
    """
    state = bare_state_dict(state_dict, source)
    if fit:
        state = fitted(model, state, source)
    differences = list(_differences(model, state))
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise DataError(f"{source}: does not fit the model: {'; '.join(differences[:5])}{more}")
    model.load_state_dict(state)


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    wanted = model.state_dict()
    lines = [f"{key} is missing" for key in wanted if key not in state]
    lines += [f"{key} is not in the model" for key in state if key not in wanted]
    for key, value in state.items():
        if key in wanted and tuple(value.shape) != tuple(wanted[key].shape):
            lines.append(f"{key} is {tuple(value.shape)}, the model's {tuple(wanted[key].shape)}")
    return lines


def fitted(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A copy of `state`, changed as far as is meaningful so that it fits `model`."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = _in_layout(state, custom_text=any(key.startswith("text.") for key in wanted))
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in wanted and state[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key])
    if "logit_bias" in wanted and "logit_bias" not in state and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    if "logit_bias" in state and "logit_bias" not in wanted:
        del state["logit_bias"]
        logger.warning(
            "%s: its logit_bias is not used: this model has none (--siglip adds one)", source
        )
    # the reference's text towers had this buffer before transformers 4.31
    if "text.transformer.embeddings.position_ids" not in wanted:
        state.pop("text.transformer.embeddings.position_ids", None)
    _resize_image_positions(model, state)
    for key in ("positional_embedding", "text.positional_embedding"):
        if key in state and key in wanted and state[key].shape[1:] == wanted[key][1:]:
            state[key] = _resized_text_positions(state[key], wanted[key][0])
    return state


def _in_layout(state: Mapping[str, Tensor], custom_text: bool) -> dict[str, Tensor]:
    """Text tower under `text.` (custom_text) or directly on the model; names of neither stay."""
    if custom_text and "positional_embedding" in state:
        return {f"text.{k}" if k.startswith(_TEXT_PARTS) else k: v for k, v in state.items()}
    if not custom_text:
        return {k.removeprefix("text."): v for k, v in state.items()}
    return dict(state)


def _resize_image_positions(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Native ViT towers: resample a file's square grid to the model's, bicubic, antialiased."""
    key = "visual.positional_embedding"
    grid = getattr(getattr(model, "visual", None), "grid_size", None)
    if key not in state or grid is None or state[key].shape[0] == 1 + grid[0] * grid[1]:
        return
    class_token, positions = state[key][:1], state[key][1:]
    side = int(positions.shape[0] ** 0.5)
    if side * side != positions.shape[0]:
        return  # reported as a difference in shape
    logger.info("Resizing position embedding grid-size from %s to %s", (side, side), tuple(grid))
    resized = F.interpolate(
        positions.reshape(1, side, side, -1).permute(0, 3, 1, 2),
        size=tuple(grid),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    state[key] = torch.cat([class_token, resized.flatten(2)[0].T])


def _resized_text_positions(
    positions: Tensor,  # (T, D)
    length: int,
) -> Tensor:  # (length, D)
    if positions.shape[0] == length:
        return positions
    logger.info("Resizing text position embedding num_pos from %s to %s", len(positions), length)
    resized = F.interpolate(positions.T[None], size=length, mode="linear", align_corners=False)
    return resized[0].T
