"""The model to evaluate: built, loaded, checked and made ready."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclip.config.eval_options import EvalOptions
from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import Precision
from fastclip.data.packing import PackRule
from fastclip.data.tokenizer import build_tokenizer
from fastclip.errors import DataError, InputMissing, UserError
from fastclip.eval.encoder import ModelEncoder
from fastclip.model.factory import create_model
from fastclip.model.model_config import schema_of, tokenizer_spec
from fastclip.model.pretrained import is_path, load_pretrained
from fastclip.train.precision import autocast_factory, input_dtype

_HUB_CONFIG = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is evaluated, and how results call it."""

    name: str
    checkpoint: str
    encoder: ModelEncoder
    tokenizer: Callable[[list[str]], Tensor]  # n texts -> int64 (n, T), T no more than they need
    preprocess: PreprocessConfig
    device: torch.device
    fingerprint: str  # of weights, precision and treatment of pictures


def load_subject(options: EvalOptions) -> Subject:
    """On `options.device`, one device. Raises UserError, InputMissing, or DataError (weights that do not fit or
    are not finite)."""
    name, weights = _what(options)
    device = torch.device(options.device or "cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current one
    precision = options.precision or ("amp" if device.type == "cuda" else "fp32")
    from_folder = weights is not None and schema_of(name) is not None
    model: Any = create_model(
        name,
        None if from_folder else weights,
        precision,
        device,
        load_weights=not from_folder,
        force_quick_gelu=options.force_quick_gelu,
        unsafe_load=options.unsafe_load,
        require_pretrained=not from_folder,
        output_dict=True,
    )
    if from_folder:  # the folder says what model it is, the file has the weights
        load_pretrained(model, Path(weights or ""), options.unsafe_load)
    fingerprint = _fingerprint(model, weights or name, precision)
    # Same features up to rounding, with less work.
    model.prune_last_block()
    model.fuse_patch_embed()
    model.eval()
    return Subject(
        name=name,
        checkpoint=options.checkpoint or name,
        encoder=ModelEncoder(
            model,
            device=device,
            autocast=autocast_factory(precision, device),
            image_dtype=input_dtype(precision),
        ),
        tokenizer=_shortest(build_tokenizer(tokenizer_spec(name)), model.packing_config),
        preprocess=model.visual.preprocess_cfg,
        device=device,
        fingerprint=fingerprint,
    )


def _what(options: EvalOptions) -> tuple[str, str | None]:
    """Name of the model, and its weights where the name does not bring them."""
    name, checkpoint = options.model, options.checkpoint
    if checkpoint is None:
        assert name is not None  # `EvalOptions` has checked it
        if schema_of(name) is None:
            raise UserError(f"--checkpoint is missing: {name} by itself has random weights")
        return name, None
    folder = Path(checkpoint)
    if folder.is_dir():
        if not (folder / _HUB_CONFIG).is_file():
            raise InputMissing(f"--checkpoint {checkpoint}: a folder without {_HUB_CONFIG}")
        if name is not None:
            raise UserError(
                f"--model {name}: leave it out, {folder / _HUB_CONFIG} says what model it is"
            )
        return f"local-dir:{checkpoint}", None
    if is_path(checkpoint) and not folder.is_file():
        raise InputMissing(f"--checkpoint {checkpoint}: no such file")
    if name is None:
        raise UserError(f"--model is missing: {checkpoint} does not say what model it is of")
    if schema_of(name) is not None and not folder.is_file():
        raise UserError(f"--checkpoint {checkpoint}: {name} has no tags; give a file")
    return name, checkpoint


def _fingerprint(model: nn.Module, source: str, precision: Precision) -> str:
    """Of every weight; DataError for one that is not finite."""
    digest = hashlib.sha256(f"{precision} {model.visual.preprocess_cfg}".encode())  # type: ignore[union-attr]
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{source}: {name} has values that are infinite or not a number")
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shortest(
    tokenizer: Callable[[list[str]], Tensor], packing_config: Any
) -> Callable[[list[str]], Tensor]:
    """Texts cut after the longest of them, where the tower reads nothing that follows a text's end."""
    if packing_config is None:
        return tokenizer
    rule = PackRule(eos_id=packing_config.eos_id if packing_config.pool_type == "eos" else None)

    def tokenize(texts: list[str]) -> Tensor:
        ids = tokenizer(texts)
        return ids[:, : int(rule.lengths(ids.numpy()).max())]

    return tokenize
