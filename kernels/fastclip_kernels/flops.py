"""Matrix-product FLOPs of this package's ops, for `torch.utils.flop_counter.FlopCounterMode`.

The counter sees an op's name and not the products in its body, and would report 0. `register()` tells it;
2·M·K·D for a product of (M, D) and (D, K). Tests compare each with what the counter finds in the bodies.
Attention counts as torch counts its own flash kernels: in full, masked or not, and in backward with the
logits made once more. That holds for torch's kernel for CPUs too, which it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from .loss import clip_alone, clip_ranks, siglip_block  # noqa: F401  (defines the ops)
from .loss.distributed import world_named
from .loss.op import NAMESPACE
from .patch_embed import ops as patch_embed_ops  # noqa: F401
from .self_attention import widened  # noqa: F401

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


def _patches(pixels: Shape, patch: int, kept: Shape | None) -> int:
    """Of all pictures; those that patch dropout leaves out are not multiplied."""
    of_one = (pixels[1] // patch) * (pixels[2] // patch) if kept is None else kept[1]
    return pixels[0] * of_one


def _patch_embed(
    pixels: Shape, weight: Shape, bias: Shape | None, class_token: Shape, positions: Shape, mean: Shape,
    std: Shape, kept: Shape | None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return 2 * _patches(pixels, weight[3], kept) * math.prod(weight)


def _patch_embed_backward(
    grad: Shape, pixels: Shape, mean: Shape, std: Shape, kept: Shape | None, patch: int, to_weight: bool,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    weight = grad[2] * 3 * patch**2
    return 2 * _patches(pixels, patch, kept) * weight if to_weight else 0


def _heads_first(*shapes: Shape) -> list[Shape]:
    """(B, T, H, W) to (B, H, T, W)."""
    return [(b, h, t, w) for b, t, h, w in shapes]


def _attention_widened(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(*_heads_first(q, k, v)))


def _attention_widened_backward(
    upstream: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(*_heads_first(upstream, q, k, v)))


def _attention_on_cpu(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_on_cpu_backward(
    upstream: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(upstream, q, k, v))


_FORMULAS: dict[str, Callable[..., int]] = {
    "clip_alone": _clip_alone,
    "clip_alone_backward": _clip_alone_backward,
    "clip_ranks": _clip_ranks,
    "clip_ranks_backward": _clip_ranks_backward,
    "siglip_block": _siglip_block,
    "patch_embed": _patch_embed,
    "patch_embed_backward": _patch_embed_backward,
    "attention_widened": _attention_widened,
    "attention_widened_backward": _attention_widened_backward,
}
_FORMULAS_OF_TORCH: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_on_cpu,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_on_cpu_backward,
}


def register() -> None:
    """Make torch's counter know the ops. Once more changes nothing."""
    for namespace, formulas in ((NAMESPACE, _FORMULAS), ("aten", _FORMULAS_OF_TORCH)):
        ops = getattr(torch.ops, namespace)
        for name, formula in formulas.items():
            op = getattr(ops, name, None)  # what is private to torch may be gone
            if op is not None and op not in flop_registry:
                register_flop_formula(op)(formula)


def clip_across_ranks(rows: int, width: int, ranks: int, *, to_image: bool, to_text: bool) -> int:
    """Of one rank in the softmax loss of `rows` pairs a rank, forward and backward, as above."""
    product = _product((rows, width), (ranks * rows, width))
    return 2 * (1 + to_image + to_text) * product


def siglip_across_ranks(rows: int, width: int, ranks: int) -> int:
    """Of one rank in the sigmoid loss: logits and both gradients, against every rank's texts."""
    return 3 * _product((rows, width), (ranks * rows, width))
