"""Pillow pictures to model input, for users: the two callables that `create_model_and_transforms`
returns.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.decode_pillow import augment_image, fit_image
from fastclip.data.draws import AugmentSampler
from fastclip.data.erase import normalize, random_erasing


class EvalTransform:
    """A Pillow picture to a normalised float32 (3, H, W) tensor, the same each time."""

    def __init__(self, preprocess: PreprocessConfig) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        return normalize(_pixels(fit_image(image, self.preprocess)), self.preprocess)[0]

    def __repr__(self) -> str:
        return f"EvalTransform({self.preprocess})"


class TrainTransform:
    """A Pillow picture to a randomly augmented, normalised float32 (3, H, W) tensor.

    With a `seed` the n-th call gives the same result in every run. Without one each call draws from
    torch's generator, which a DataLoader seeds anew for each of its processes and each epoch.
    """

    def __init__(
        self, augment: AugmentConfig, preprocess: PreprocessConfig, seed: int | None = None
    ) -> None:
        self.augment = augment
        self.preprocess = preprocess
        self._sampler = AugmentSampler(augment, preprocess, seed or 0)
        self._seeded = seed is not None
        self._erasing = random_erasing(preprocess, augment)
        self._calls = 0

    def __call__(self, image: Image.Image) -> Tensor:
        key = self._calls if self._seeded else int(torch.randint(2**63 - 1, ()))
        draw = self._sampler(0, str(key), image.height, image.width)
        self._calls += 1
        pixels = _pixels(augment_image(image, draw, self.preprocess.size))
        if self._erasing is None:
            return normalize(pixels, self.preprocess)[0]
        return self._erasing(pixels, torch.tensor([draw.erase]))[0]

    def __repr__(self) -> str:
        return f"TrainTransform({self.augment}, {self.preprocess})"


def _pixels(image: Image.Image) -> Tensor:
    """uint8 (1, H, W, 3)."""
    return torch.from_numpy(np.array(image))[None]
