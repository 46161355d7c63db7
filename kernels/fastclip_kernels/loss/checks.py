"""What the public functions of this room accept; every bad argument is one clear error.

Launchers and formulas behind the public functions trust their callers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float64, torch.float32, *_HALF)


def refuse_torch_func(op: str) -> None:
    """RuntimeError inside a transform of torch.func or a level of forward-mode derivatives, which an op's own gradient
    does not support: it would be lost without a word.
    """
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        raise RuntimeError(
            f"{op}: not supported inside torch.func transforms (grad, vmap, jvp, ...); use"
            " torch.autograd.grad, or the formula of its reference.py inside the transform"
        )
    if not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError(
            f"{op}: no forward-mode derivatives (torch.autograd.forward_ad); use torch.autograd.grad, or the formula of"
            " its reference.py"
        )


def check_features(op: str, names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    """Both must be (B, D) with B, D >= 1, of one device, and of one float dtype unless autocast
    unifies it; and not inside a transform of torch.func, which an op's own gradient does not support.
    """
    refuse_torch_func(op)
    for name, features in zip(names, (first, second), strict=True):
        if not isinstance(features, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(features).__name__}")
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(
                f"{op}: {name} must be (B, D) with B and D at least 1, got {tuple(features.shape)}"
            )
        if features.dtype not in _FLOATS:
            wanted = ", ".join(str(dtype) for dtype in _FLOATS)
            raise TypeError(f"{op}: {name} must be one of {wanted}, got {features.dtype}")
    if first.shape != second.shape:
        raise ValueError(
            f"{op}: {names[1]} must be {tuple(first.shape)} like {names[0]},"
            f" got {tuple(second.shape)}"
        )
    if first.device != second.device:
        raise ValueError(
            f"{op}: {names[1]} must be on {first.device} like {names[0]}, got {second.device}"
        )
    if first.dtype != second.dtype and not (
        autocast_is_on(first.device.type) and torch.float64 not in (first.dtype, second.dtype)
    ):
        raise TypeError(
            f"{op}: {names[1]} must be {first.dtype} like {names[0]}, got {second.dtype}"
        )


def as_scalar(op: str, name: str, value: Tensor | float, like: Tensor) -> Tensor:
    """`value` as a 0-dim tensor on the device of `like`, in the dtype of sums (see `sum_dtype`).

    Differentiable; a Python number becomes a constant. Shape (1,) is accepted as the reference's
    `nonscalar_logit_scale` models make it.
    """
    dtype = sum_dtype(like.dtype)
    if isinstance(value, bool) or not isinstance(value, (Tensor, float, int)):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=like.device)
    if value.numel() != 1:
        raise ValueError(f"{op}: {name} must hold one number, got shape {tuple(value.shape)}")
    if value.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be a float tensor, got {value.dtype}")
    if value.device != like.device and value.device.type != "cpu":
        raise ValueError(f"{op}: {name} must be on {like.device}, got {value.device}")
    if value.ndim:
        value = value.reshape(())
    return value.to(device=like.device, dtype=dtype)


def autocast_is_on(device: str) -> bool:
    """Also for devices that have none, as the meta device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def product_dtype(features: Tensor) -> torch.dtype:
    """The dtype that features are rounded to before they are multiplied.

    Autocast's where it is on (it leaves float64 alone), else the features' own.
    """
    device = features.device.type
    if autocast_is_on(device) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return features.dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, sums and the loss: float64 for float64 features, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
