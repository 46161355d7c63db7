"""Which attention the towers run: decided here, once, and said in one line."""

from __future__ import annotations

import logging
from typing import Any

import torch

from fastclip.config.train_config import AttentionBackend, TrainConfig
from fastclip.errors import EnvironmentProblem, UserError
from fastclip.train.precision import product_dtype
from fastclip_kernels import BackendUnavailable
from fastclip_kernels.self_attention.dispatch import LABELS, Choice, choose, facts_of

logger = logging.getLogger(__name__)


def set_up_attention(
    model: Any,
    teacher: Any,  # None: there is none
    config: TrainConfig,
    device: torch.device,
    *,
    packed: bool,  # the model reads packed captions
    teacher_packed: bool,
) -> str:
    """Give the towers of both the attention of `--attention`; open_clip's own models keep theirs.

    Returns what `model` got, and why. Asked of torch's settings: whether algorithms must be deterministic.
    Raises UserError, EnvironmentProblem where the one that was named cannot run.
    """
    backend, dtype = config.model.attention, product_dtype(config.precision)
    if backend != "auto" and model.head_widths is None:
        raise UserError(
            f"--attention {backend}: {config.model.name} is not one of fastclip's own models; "
            "drop the flag"
        )
    if backend == "varlen" and config.trains and not packed:
        raise UserError(
            "--attention varlen is for packed captions, and this run packs none: use --attention sdpa"
        )
    chosen = _set_up(model, backend, dtype, device, packed)
    logger.info("attention: %s", chosen)
    if teacher is not None:
        line = _set_up(teacher, backend, dtype, device, teacher_packed)
        logger.info("attention of the teacher: %s", line)
    return chosen


def _set_up(
    model: Any, backend: AttentionBackend, dtype: torch.dtype, device: torch.device, packed: bool
) -> str:
    """What was chosen."""
    if model.head_widths is None:
        return "open_clip's own"
    image, text = (
        _choose(backend, dtype, device, tower, width)
        for tower, width in zip(("image", "text"), model.head_widths, strict=True)
    )
    model.use_attention(image.attention, text.attention)
    return describe(image, text, packed)


def _choose(
    backend: AttentionBackend, dtype: torch.dtype, device: torch.device, tower: str, width: int
) -> Choice:
    try:
        return choose(backend, facts_of(device, dtype, width))
    except BackendUnavailable as error:
        reason = str(error).removeprefix("attention: ")
        raise EnvironmentProblem(
            f"--attention {reason} ({tower} tower); drop the flag, or use --attention sdpa"
        ) from error


def describe(image: Choice, text: Choice, packed: bool) -> str:
    """Both towers' attention, and why it is nothing faster."""
    parts = [f"pictures by {LABELS[image.dense]}"]
    reasons = [image.dense_reason]
    if packed:
        mask = " with a mask" if text.packed.startswith("sdpa") else ""
        parts.append(f"packed captions by {LABELS[text.packed]}{mask}")
        reasons.append(text.packed_reason)
    parts.append(f"{'other captions' if packed else 'captions'} by {LABELS[text.dense]}")
    reasons.append(text.dense_reason)
    said = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
    return ", ".join(parts) + (f" ({said})" if said else "")
