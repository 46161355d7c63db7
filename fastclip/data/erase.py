"""Random erasing of parts of normalised pictures (`re_prob` and `re_count` of `--aug-cfg` with
`use_timm`).

Method: Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896, with the reference's
(timm's) ranges: a box of 2 % to 1/3 of the picture, aspect ratio 0.3 to 1/0.3, every pixel of it
replaced by its own normal noise.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.draws import NO_ERASE, erase_probability
from fastclip.errors import UserError

_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10


def normalize(images: Tensor, preprocess: PreprocessConfig) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W): scaled to 0..1, less the mean, over the
    deviation, per channel.
    """
    mean = torch.tensor(preprocess.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, device=images.device).view(1, 3, 1, 1)
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).contiguous()


class RandomErasing:
    """Normalises a batch and erases in it what the draws say."""

    def __init__(self, preprocess: PreprocessConfig, augment: AugmentConfig) -> None:
        self._preprocess = preprocess
        self._max_count = 1 if augment.re_count is None else augment.re_count
        if self._max_count < 1:
            raise UserError(f"--aug-cfg re_count={self._max_count}: must be at least 1")

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) and `Draws.erase` (B,), on the CPU, to normalised float32 (B, 3, H,
        W).
        """
        pixels = normalize(images, self._preprocess)
        for picture, seed in zip(pixels, seeds.tolist(), strict=True):
            if seed != NO_ERASE:
                erase_(picture, seed, self._max_count)
        return pixels


def random_erasing(preprocess: PreprocessConfig, augment: AugmentConfig) -> RandomErasing | None:
    """The erasing that `augment` asks for; None where it asks for none and batches stay uint8."""
    return RandomErasing(preprocess, augment) if erase_probability(augment) > 0 else None


def erase_(picture: Tensor, seed: int, max_count: int) -> None:
    """Overwrite 1 to `max_count` boxes of a normalised (3, H, W) picture, in place; boxes depend on
    `seed` only.
    """
    uniform = random.Random(seed).random
    noise = torch.Generator(device=picture.device).manual_seed(seed)
    _, height, width = picture.shape
    count = 1 + int(uniform() * max_count)
    for _ in range(count):
        for _ in range(_TRIES):
            area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * uniform()) / count
            ratio = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * uniform())
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top = int(uniform() * (height - h + 1))
                left = int(uniform() * (width - w + 1))
                picture[:, top : top + h, left : left + w].normal_(generator=noise)
                break
