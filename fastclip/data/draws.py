"""Every random decision about a training picture, as a function of (seed, epoch, sample key) alone.

A worker draws here; DALI and Pillow only carry out what was drawn. So the same sample in the same
epoch gets the same crop and the same colours whatever the number of workers, the decoder or the
number of restarts. The distributions are those of the reference's transforms: torchvision's
`RandomResizedCrop` and `ColorJitter`, and with `use_timm` timm's
`RandomResizedCropAndInterpolation` and `RandomErasing`. Nothing is ever flipped.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastclip.config.images import AugmentConfig, PreprocessConfig
from fastclip.data.batch import Draws
from fastclip.errors import UserError

UNCHANGED = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue that change nothing
NO_ERASE = -1
_DEFAULT_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10

_Uniform = Callable[[], float]  # each call gives the next number in [0, 1)


class Draw(NamedTuple):
    """The decisions about one picture; fields as in `Draws`."""

    crop: tuple[int, int, int, int]  # top, left, height, width, in pixels of the decoded picture
    bilinear: bool
    factors: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    order: tuple[int, int, int, int]  # indices into `factors`, first applied first
    gray: bool
    erase: int  # seed of the random erasing, or NO_ERASE


class AugmentSampler:
    """Draws what happens to each training picture. Raises UserError on a bad `--aug-cfg`."""

    def __init__(self, augment: AugmentConfig, preprocess: PreprocessConfig, seed: int) -> None:
        self._seed = seed
        self._scale = _range("scale", augment.scale, low=0.0)
        # reference: the plain path takes no `ratio`, and resizes bicubic whatever the model's
        # interpolation
        ratio = augment.ratio if augment.use_timm and augment.ratio else _DEFAULT_RATIO
        ratio = _range("ratio", ratio, low=0.0)
        if ratio[0] <= 0:
            raise UserError(f"--aug-cfg ratio={ratio}: width / height must be greater than 0")
        self._ratio = ratio
        self._log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
        interpolation = preprocess.interpolation if augment.use_timm else "bicubic"
        self._bilinear_prob = {"bicubic": 0.0, "bilinear": 1.0, "random": 0.5}[interpolation]
        self._jitter = _jitter_ranges(augment)
        # reference: with use_timm the jitter is always on and grey never, whatever the two
        # probabilities say
        self._jitter_prob = 1.0 if augment.use_timm else augment.color_jitter_prob or 0.0
        self._gray_prob = 0.0 if augment.use_timm else augment.gray_scale_prob or 0.0
        self._erase_prob = erase_probability(augment)
        for name, prob in (
            ("color_jitter_prob", self._jitter_prob),
            ("gray_scale_prob", self._gray_prob),
            ("re_prob", self._erase_prob),
        ):
            if not 0 <= prob <= 1:
                raise UserError(f"--aug-cfg {name}={prob}: a probability is between 0 and 1")

    def __call__(self, epoch: int, key: str, height: int, width: int) -> Draw:
        """The draw for sample `key` ("shard/key"), whose decoded picture is `height` by `width`
        pixels.
        """
        # Own hash and only `random()` of the generator: both are the same in every process and
        # Python version. (sample keys may hold lone surrogates, where a tar's member name was no
        # UTF-8)
        name = f"{self._seed}/{epoch}/{key}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(name, digest_size=16).digest()
        uniform = random.Random(int.from_bytes(digest, "little")).random
        crop = self._crop(uniform, height, width)
        bilinear = uniform() < self._bilinear_prob
        factors, order = UNCHANGED, (0, 1, 2, 3)
        if self._jitter is not None and uniform() < self._jitter_prob:
            brightness, contrast, saturation, hue = (
                low + (high - low) * uniform() for low, high in self._jitter
            )
            factors = (brightness, contrast, saturation, hue)
            order = _permutation(uniform)
        gray = uniform() < self._gray_prob
        erase = int(uniform() * 2**53) if uniform() < self._erase_prob else NO_ERASE
        return Draw(crop, bilinear, factors, order, gray, erase)

    def _crop(self, uniform: _Uniform, height: int, width: int) -> tuple[int, int, int, int]:
        area = height * width
        low, high = self._scale
        log_low, log_high = self._log_ratio
        for _ in range(_CROP_TRIES):
            target = area * (low + (high - low) * uniform())
            ratio = math.exp(log_low + (log_high - log_low) * uniform())
            w = round(math.sqrt(target * ratio))
            h = round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(uniform() * (height - h + 1))
                left = int(uniform() * (width - w + 1))
                return top, left, h, w
        # No box fitted: the largest central one whose ratio is allowed.
        h, w = height, width
        if width / height < self._ratio[0]:
            h = min(height, max(1, round(width / self._ratio[0])))
        elif width / height > self._ratio[1]:
            w = min(width, max(1, round(height * self._ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w


def stack(draws: list[Draw]) -> Draws:
    """The draws of one batch as tensors, row i for picture i."""
    return Draws(
        crop=torch.tensor([d.crop for d in draws], dtype=torch.int32).reshape(-1, 4),
        bilinear=torch.tensor([d.bilinear for d in draws], dtype=torch.bool),
        factors=torch.tensor([d.factors for d in draws], dtype=torch.float32).reshape(-1, 4),
        order=torch.tensor([d.order for d in draws], dtype=torch.int8).reshape(-1, 4),
        gray=torch.tensor([d.gray for d in draws], dtype=torch.bool),
        erase=torch.tensor([d.erase for d in draws], dtype=torch.int64),
    )


def unstack(draws: Draws) -> list[Draw]:
    """The inverse of `stack`; factors come back rounded to float32."""
    rows = zip(*(field.tolist() for field in draws), strict=True)
    return [
        Draw(tuple(crop), bilinear, tuple(factors), tuple(order), gray, erase)
        for crop, bilinear, factors, order, gray, erase in rows
    ]


def erase_probability(augment: AugmentConfig) -> float:
    """How often a picture is erased in part; reference: `re_prob` acts with `use_timm` only."""
    return augment.re_prob or 0.0 if augment.use_timm else 0.0


def augment_warnings(augment: AugmentConfig) -> list[str]:
    """One line if `--aug-cfg` holds keys that OpenCLIP, and so this run, does not obey."""
    given = {
        name: getattr(augment, name)
        for name in ("ratio", "color_jitter", "re_prob", "re_count")
        if getattr(augment, name) is not None
    }
    if augment.use_timm:
        ignored = []
        if augment.color_jitter_prob is not None:
            state = "off (no color_jitter)" if augment.color_jitter is None else "always on"
            ignored.append(f"color_jitter_prob={augment.color_jitter_prob} (jitter is {state})")
        if augment.gray_scale_prob is not None:
            ignored.append(f"gray_scale_prob={augment.gray_scale_prob} (grey is never applied)")
        if ignored:
            return [f"--aug-cfg use_timm=True ignores {' and '.join(ignored)}, as OpenCLIP does"]
        return []
    if augment.color_jitter_prob:
        given.pop("color_jitter", None)
    if given:
        names = ", ".join(
            "color_jitter (needs color_jitter_prob)" if name == "color_jitter" else name
            for name in given
        )
        return [f"--aug-cfg without use_timm=True ignores {names}, as OpenCLIP does"]
    return []


def _permutation(uniform: _Uniform) -> tuple[int, int, int, int]:
    """A uniformly random order of 0..3."""
    items = [0, 1, 2, 3]
    for i in (3, 2, 1):
        j = int(uniform() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items[0], items[1], items[2], items[3]


def _jitter_ranges(augment: AugmentConfig) -> tuple[tuple[float, float], ...] | None:
    """(low, high) of brightness, contrast, saturation and hue; None where nothing is jittered."""
    jitter = augment.color_jitter
    if augment.use_timm:
        if jitter is None:
            return None
        strengths = (jitter,) * 3 if isinstance(jitter, (int, float)) else tuple(jitter)
        if len(strengths) not in (3, 4):
            raise UserError(f"--aug-cfg color_jitter={jitter}: give 1, 3 or 4 numbers")
    else:
        if not augment.color_jitter_prob:
            return None
        strengths = () if jitter is None or isinstance(jitter, (int, float)) else tuple(jitter)
        if len(strengths) != 4:
            raise UserError(
                f"--aug-cfg color_jitter={jitter}: color_jitter_prob needs 4 numbers "
                "(brightness, contrast, saturation, hue)"
            )
    brightness, contrast, saturation, *rest = strengths
    hue = rest[0] if rest else 0.0
    if not all(isinstance(x, (int, float)) and x >= 0 for x in strengths) or hue > 0.5:
        raise UserError(
            f"--aug-cfg color_jitter={jitter}: numbers must be 0 or greater, and hue at most 0.5"
        )
    ranges = tuple((max(0.0, 1.0 - x), 1.0 + x) for x in (brightness, contrast, saturation))
    return (*ranges, (-float(hue), float(hue)))


def _range(name: str, value: tuple[float, ...], low: float) -> tuple[float, float]:
    ordered = len(value) == 2 and low <= value[0] <= value[1]
    if not ordered or value[1] <= low:
        raise UserError(
            f"--aug-cfg {name}={value}: give two numbers, the smaller first, none below {low}"
        )
    return value[0], value[1]
