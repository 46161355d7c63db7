"""What is done to pixels: at evaluation (a property of the model) and in training (a property of the run)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Interpolation = Literal["bicubic", "bilinear", "random"]
ResizeMode = Literal["shortest", "longest", "squash"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """How a picture becomes the model's input (the reference's `PreprocessCfg`).

    `size` is (height, width) in pixels; `mean` and `std` are of RGB values scaled to 0..1.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """`--aug-cfg` (the reference's `AugmentationCfg`), as the user wrote it.

    Which keys act depends on `use_timm`, as in the reference: see `data/augment.py`.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] | None = None
    color_jitter: float | tuple[float, ...] | None = None
    re_prob: float | None = None
    re_count: int | None = None
    use_timm: bool = False
    color_jitter_prob: float | None = None
    gray_scale_prob: float | None = None
