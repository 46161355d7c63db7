"""`--pretrained`: from what the user typed to weights in the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastclip import optional
from fastclip.errors import InputMissing, UserError
from fastclip.model.checkpoint_file import read_checkpoint
from fastclip.model.model_config import OPENCLIP_INSTALL
from fastclip.model.one_line import first_line
from fastclip.model.state_dict import load_state

logger = logging.getLogger(__name__)

_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# in order of preference, the reference's for folders in its own export format
_FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


class Pretrained(NamedTuple):
    """A weight file, and what its publisher says about the pictures it was trained on."""

    path: Path
    preprocess: Mapping[str, Any]
    quick_gelu: bool | None  # None: not said


def is_path(pretrained: str) -> bool:
    """Whether `--pretrained` means a file, there or not, and no tag of the reference."""
    return "/" in pretrained or pretrained.endswith(_WEIGHT_SUFFIXES) or Path(pretrained).exists()


def find_pretrained(model_name: str, pretrained: str, cache_dir: str | None) -> Pretrained:
    """The file that `--pretrained` means: a path, or a tag of the reference (downloaded by
    open_clip).

    InputMissing for a path that is not there, and a tag that cannot be downloaded; UserError for
    an unknown tag; EnvironmentProblem if it takes open_clip to know.
    """
    if Path(pretrained).is_file():
        return Pretrained(Path(pretrained), {}, None)
    if is_path(pretrained):
        raise InputMissing(f"--pretrained {pretrained}: no such file")
    optional.require(
        "open_clip",
        f"--pretrained {pretrained} (no such file, so taken for a tag)",
        OPENCLIP_INSTALL,
    )
    from open_clip import pretrained as reference

    tag = reference.get_pretrained_cfg(model_name, pretrained)
    if not tag:
        tags = ", ".join(reference.list_pretrained_tags_by_model(model_name)) or "none"
        raise UserError(
            f"--pretrained {pretrained}: neither a file nor a tag of {model_name}; its tags: {tags}"
        )
    try:
        path = reference.download_pretrained(tag, cache_dir=cache_dir)
    except (OSError, RuntimeError) as error:
        raise InputMissing(
            f"--pretrained {pretrained}: cannot be downloaded: {first_line(error)}; "
            "download it elsewhere and give the file"
        ) from error
    return Pretrained(Path(path), tag, bool(tag.get("quick_gelu", False)))


def find_folder_weights(folder: Path) -> Path | None:
    """The weight file of a `local-dir:` model, the one the reference would take, or None."""
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(
        (path for suffix in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{suffix}")),
        key=lambda path: (path.suffix != ".safetensors", path),
    )
    return found[0] if found else None


def load_pretrained(model: nn.Module, path: Path, unsafe: bool) -> None:
    """Load the weights in `path` into `model`, fitted to it; DataError shows what does not fit."""
    load_state(model, read_checkpoint(path, unsafe), str(path), fit=True)
    logger.info("weights: %s", path)
