"""Pictures as users have them, files or Pillow's, to the pixels that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastclip.config.images import PreprocessConfig
from fastclip.data.decode_pillow import EvalDecoder, fit_image
from fastclip.data.image_header import BadImage
from fastclip.errors import DataError, InputMissing

Picture = str | PathLike[str] | Image.Image


def preprocess_of(model: nn.Module) -> PreprocessConfig:
    """How `model` wants its pictures."""
    visual: Any = model.visual
    preprocess: PreprocessConfig = visual.preprocess_cfg
    return preprocess


def read_pixels(picture: Picture, preprocess: PreprocessConfig) -> np.ndarray:
    """uint8 (H, W, 3). InputMissing for a file that is not there, DataError for no picture."""
    try:
        if isinstance(picture, Image.Image):
            return np.asarray(fit_image(picture, preprocess))
        return EvalDecoder(preprocess)(Path(picture).read_bytes())
    except BadImage as error:
        raise DataError(f"{picture}: {error}") from error
    except OSError as error:
        raise InputMissing(f"{picture}: cannot be read: {error.strerror or error}") from error


def stack_pixels(
    pictures: Sequence[Picture] | Tensor, preprocess: PreprocessConfig
) -> Tensor:  # uint8 (B, H, W, 3), or a tensor as it was given
    """Raises as `read_pixels`."""
    if isinstance(pictures, Tensor):
        return pictures
    return torch.from_numpy(np.stack([read_pixels(picture, preprocess) for picture in pictures]))
