"""Matrix-product FLOPs of this package's ops, for `torch.utils.flop_counter.FlopCounterMode`.

The counter sees an op's name and not the products in its body, and would report 0. `register()` tells it;
2·M·K·D for a product of (M, D) and (D, K). Tests compare each with what the counter finds in the bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .loss import clip_alone, clip_ranks, siglip_block  # noqa: F401  (defines the ops)
from .loss.distributed import world_named
from .loss.op import NAMESPACE

Shape = Sequence[int]


def _product(rows: Shape, columns: Shape) -> int:
    return 2 * rows[0] * columns[0] * rows[1]


def _clip_alone(image: Shape, text: Shape, *_: Any, **__: Any) -> int:
    """Logits."""
    return _product(image, text)


def _clip_alone_backward(
    upstream: Shape, image: Shape, text: Shape, scale: Shape, sums: Shape, dtype: Any, backend: str,
    to_image: bool, to_text: bool, to_scale: bool, **_: Any,
) -> int:  # fmt: skip
    """Logits again, and one product for each gradient; the scale's is made from one of them."""
    gradients = (to_image or (to_scale and not to_text)) + to_text
    return (1 + gradients) * _product(image, text)


def _clip_ranks(
    image: Shape, text: Shape, scale: Shape, dtype: Any, backend: str, group: str, *_: Any, **__: Any
) -> int:  # fmt: skip
    """Own images over all texts, own texts over all images."""
    return 2 * world_named(group).size * _product(image, text)


def _clip_ranks_backward(
    upstream: Shape, image: Shape, text: Shape, scale: Shape, by_scale: Shape, sums: Shape,
    all_images: Shape, all_texts: Shape, dtype: Any, backend: str, group: str, local_loss: bool,
    gather_with_grad: bool, ring: bool, to_image: bool, to_text: bool, **_: Any,
) -> int:  # fmt: skip
    """Of each side that is asked for, logits again and the gradient."""
    return 2 * (to_image + to_text) * world_named(group).size * _product(image, text)


def _siglip_block(
    image: Shape, text: Shape, scale: Shape, bias: Shape, first: int | None, dtype: Any, backend: str,
    gradients: bool, **_: Any,
) -> int:  # fmt: skip
    return (3 if gradients else 1) * _product(image, text)


_FORMULAS: dict[str, Callable[..., int]] = {
    "clip_alone": _clip_alone,
    "clip_alone_backward": _clip_alone_backward,
    "clip_ranks": _clip_ranks,
    "clip_ranks_backward": _clip_ranks_backward,
    "siglip_block": _siglip_block,
}


def register() -> None:
    """Make torch's counter know the ops. Once more changes nothing."""
    ops = getattr(torch.ops, NAMESPACE)
    for name, formula in _FORMULAS.items():
        op = getattr(ops, name)
        if op not in flop_registry:
            register_flop_formula(op)(formula)
