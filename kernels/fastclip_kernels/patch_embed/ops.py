"""Raw pixels to the tokens of an image tower, as an op of torch. Derivation and costs: README.md.

    token[b, 0]     = class + positions[0]
    token[b, 1 + i] = Σ_k weight[k] · (pixel[b, i, k] / 255 - mean) / std + bias + positions[1 + i]

    tensor     shape         dtype
    pixels     (B, H, W, 3)  uint8, any strides
    parameters               float64, float32, bfloat16, float16, each its own
    result     (B, 1 + P, D) autocast's dtype where it is on, else the weight's
Saved for backward: the pixels, as bytes. Products are summed in float32 (float64 for float64 weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backend import BackendName, Choice, resolve
from ..loss.checks import product_dtype, refuse_torch_func, sum_dtype
from ..loss.op import NAMESPACE, custom_op, op_body, refuse_second_derivative
from . import torch_form
from .folded import fold, normalisation, table_gradient, unfold_gradient

OP = "patch_embed"

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def patch_embed(
    pixels: Tensor,  # uint8 (B, H, W, 3)
    weight: Tensor,  # (D, 3, p, p), a convolution's
    class_token: Tensor,  # (D,)
    positions: Tensor,  # (1 + P, D): class token, then P = (H // p) · (W // p) patches row by row
    *,
    mean: Tensor | Sequence[float],  # 3 numbers, of pixels / 255
    std: Tensor | Sequence[float],
    bias: Tensor | None = None,  # (D,)
    kept: Tensor | None = None,  # int64 (B, K)
    backend: BackendName = "auto",
) -> Tensor:  # (B, 1 + P, D), or (B, 1 + K, D)
    """Tokens of normalised pictures, with class token and positions; one pass over the bytes.

    With `kept` only those patches are computed, in that order. Its numbers must be in 0 ... P - 1; on a
    GPU that is not checked. `mean` and `std` get no gradient; a tensor on the pixels' device spares a
    copy at each call. Pixels beyond the last whole patch are not read.

    TypeError, ValueError: an argument that does not fit, named. BackendUnavailable: the backend that was
    named cannot run.
    """
    refuse_torch_func(OP)
    _check(pixels, weight, class_token, positions, bias, kept)
    dtype = product_dtype(weight)
    chosen = choose(backend, pixels.device, dtype).backend
    of_channels = [_channels(name, v, pixels.device) for name, v in (("mean", mean), ("std", std))]
    tokens: Tensor = patch_embed_op(
        pixels, weight, bias, class_token, positions, *of_channels, kept, dtype, chosen
    )
    return tokens


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """As `resolve`; float32 goes to the vendor's GEMM unless Triton is asked for by name."""
    choice = resolve(OP, backend, device, dtype)
    if backend == "auto" and choice.backend == "triton" and dtype == torch.float32:
        return Choice("torch", "Triton's exact float32 product uses no tensor cores")
    return choice


def _check(
    pixels: Tensor,
    weight: Tensor,
    class_token: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
) -> None:
    if pixels.dtype != torch.uint8:
        raise TypeError(f"{OP}: pixels must be torch.uint8, got {pixels.dtype}")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) == 0:
        raise ValueError(
            f"{OP}: pixels must be (B, H, W, 3) with B at least 1, got {tuple(pixels.shape)}"
        )
    if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"{OP}: weight must be (D, 3, p, p), got {tuple(weight.shape)}")
    width, patch = len(weight), weight.shape[-1]
    patches = _grid(pixels, patch)
    if patches == 0 or width == 0:
        raise ValueError(
            f"{OP}: pictures of {tuple(pixels.shape[1:3])} pixels hold no patch of {patch}"
            if width
            else f"{OP}: weight must be (D, 3, p, p) with D at least 1"
        )
    shapes = {
        "class_token": (class_token, (width,)),
        "positions": (positions, (1 + patches, width)),
        "bias": (bias, (width,)),
    }
    for name, (given, wanted) in shapes.items():
        if given is not None and given.shape != wanted:
            raise ValueError(f"{OP}: {name} must be {wanted}, got {tuple(given.shape)}")
    named = {"weight": weight, **{name: given for name, (given, _) in shapes.items()}}
    for name, given in named.items():
        if given is not None and given.dtype not in _FLOATS:
            raise TypeError(f"{OP}: {name} must be a float tensor, got {given.dtype}")
    if kept is not None and kept.dtype != torch.int64:
        raise TypeError(f"{OP}: kept must be torch.int64, got {kept.dtype}")
    if kept is not None and (kept.ndim != 2 or len(kept) != len(pixels) or kept.shape[1] == 0):
        raise ValueError(
            f"{OP}: kept must be ({len(pixels)}, K) with K at least 1, got {tuple(kept.shape)}"
        )
    for name, given in {**named, "kept": kept}.items():
        if given is not None and given.device != pixels.device:
            raise ValueError(
                f"{OP}: {name} must be on {pixels.device} like pixels, got {given.device}"
            )


def _channels(name: str, values: Tensor | Sequence[float], device: torch.device) -> Tensor:
    if not isinstance(values, Tensor):
        values = torch.tensor(values, dtype=torch.float64).to(device, torch.float32)
    if values.shape != (3,):
        raise ValueError(f"{OP}: {name} must be 3 numbers, got shape {tuple(values.shape)}")
    if values.device != device:
        raise ValueError(f"{OP}: {name} must be on {device} like pixels, got {values.device}")
    return values.detach()


def _grid(pixels: Tensor, patch: int) -> int:
    """How many whole patches a picture has."""
    return (pixels.shape[1] // patch) * (pixels.shape[2] // patch)


def _form(backend: str) -> ModuleType:
    if backend == "triton":
        from . import triton_form  # imports triton, which not every platform has

        return triton_form
    return torch_form


@custom_op("patch_embed")
def patch_embed_op(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_token: Tensor,
    positions: Tensor,
    mean: Tensor,
    std: Tensor,
    kept: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """(B, 1 + patches, D) in `dtype`, in which patches and weights are multiplied."""
    with op_body(pixels):
        patch = weight.shape[-1]
        tokens = 1 + (_grid(pixels, patch) if kept is None else kept.shape[1])
        pixel = normalisation(mean, std, dtype)
        out = torch.empty(len(pixels), tokens, len(weight), dtype=dtype, device=pixels.device)
        out[:, 0] = class_token.to(pixel.rest.dtype) + positions[0]
        folded = fold(weight, bias, positions, pixel, dtype)
        _form(backend).add_patches(out, pixels, folded, pixel.centre, kept, patch)
        return out


@patch_embed_op.register_fake
def _(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_token: Tensor,
    positions: Tensor,
    mean: Tensor,
    std: Tensor,
    kept: Tensor | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    patches = _grid(pixels, weight.shape[-1]) if kept is None else kept.shape[1]
    return pixels.new_empty((len(pixels), 1 + patches, len(weight)), dtype=dtype)


@custom_op("patch_embed_backward")
def patch_embed_backward(
    grad: Tensor,  # (B, 1 + patches, D)
    pixels: Tensor,
    mean: Tensor,
    std: Tensor,
    kept: Tensor | None,
    patch: int,
    to_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients by the weight (D, 3, p, p), or an empty tensor where it is not wanted, and by class token
    and positions added (1 + P, D); both in the dtype of sums.
    """
    with op_body(pixels):
        grad, pixel = grad.contiguous(), normalisation(mean, std, grad.dtype)
        by_table = table_gradient(grad, kept, _grid(pixels, patch), pixel.rest.dtype)
        if not to_weight:
            return by_table.new_empty(0), by_table
        sums = _form(backend).weight_sums(grad, pixels, pixel.centre, kept, patch)
        return unfold_gradient(sums, by_table[1:].sum(0), pixel, patch), by_table


@patch_embed_backward.register_fake
def _(
    grad: Tensor,
    pixels: Tensor,
    mean: Tensor,
    std: Tensor,
    kept: Tensor | None,
    patch: int,
    to_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    width, dtype = grad.shape[-1], sum_dtype(grad.dtype)
    shape = (width, 3, patch, patch) if to_weight else (0,)
    by_table = grad.new_empty((1 + _grid(pixels, patch), width), dtype=dtype)
    return grad.new_empty(shape, dtype=dtype), by_table


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pixels, weight, bias, class_token, positions, mean, std, kept, _, ctx.backend = inputs
    ctx.patch = weight.shape[-1]
    ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias, class_token, positions)]
    ctx.save_for_backward(pixels, mean, std, kept)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[1:5]
    by_weight, by_table = patch_embed_backward(
        grad, *ctx.saved_tensors, ctx.patch, wanted[0], ctx.backend
    )
    # each in memory of its own: gradients are scaled and added to in place
    makers = (
        lambda: by_weight,
        lambda: by_table[1:].sum(0),
        lambda: by_table[0].clone(),
        lambda: by_table,
    )
    gradients = (
        make().to(dtype) if needed else None
        for make, dtype, needed in zip(makers, ctx.dtypes, wanted, strict=True)
    )
    return None, *gradients, *(None,) * 5


patch_embed_op.register_autograd(_backward, setup_context=_setup)
patch_embed_backward.register_autograd(refuse_second_derivative)


@register_flop_formula(getattr(torch.ops, NAMESPACE).patch_embed)
def _forward_flops(pixels: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    batch, tokens, width = out_shape
    return 2 * batch * (tokens - 1) * width * 3 * weight[-1] ** 2


@register_flop_formula(getattr(torch.ops, NAMESPACE).patch_embed_backward)
def _backward_flops(
    grad: Any,
    pixels: Any,
    mean: Any,
    std: Any,
    kept: Any,
    patch: int,
    to_weight: bool,
    *_: Any,
    **__: Any,
) -> int:
    batch, tokens, width = grad
    return 2 * batch * (tokens - 1) * width * 3 * patch**2 * to_weight
