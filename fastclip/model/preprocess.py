"""How a model wants its pictures: the reference's order of precedence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from fastclip.config.images import Interpolation, PreprocessConfig, ResizeMode
from fastclip.errors import UserError


def resolve_preprocess(
    size: int | Sequence[int], *layers: Mapping[str, Any] | None
) -> PreprocessConfig:
    """`size` is the model's; of the layers (weights' own settings, then flags) the last that
    speaks wins.

    Keys that are not ours and values of None are passed over. UserError for a value that is not
    allowed.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        for key in ("mean", "std", "interpolation", "resize_mode", "fill_color"):
            if layer and layer.get(key) is not None:
                settings[key] = layer[key]
    for key in ("mean", "std"):
        if key in settings:
            settings[key] = _per_channel(key, settings[key])
    _check("interpolation", settings, Interpolation)
    _check("resize_mode", settings, ResizeMode)
    height, width = (size, size) if isinstance(size, int) else size
    return PreprocessConfig(size=(height, width), **settings)


def _per_channel(key: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = (value,) if isinstance(value, (int, float)) else tuple(value)
    if len(values) not in (1, 3):
        raise UserError(f"image {key}: 1 or 3 numbers, got {len(values)}")
    return tuple(float(v) for v in values) * (3 // len(values))


def _check(key: str, settings: Mapping[str, Any], choices: Any) -> None:
    allowed: tuple[Literal, ...] = get_args(choices)  # type: ignore[valid-type]
    if key in settings and settings[key] not in allowed:
        raise UserError(f"image {key} {settings[key]!r}: choose {', '.join(map(str, allowed))}")
