"""What `--precision` does to parameters and inputs (the reference's rules)."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.config.train_config import Precision
from fastclip.errors import UserError


class LayerNorm(nn.LayerNorm):
    """Layer norm whose output has the input's dtype, also where autocast computes it in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return out.to(x.dtype)


class LayerNormFp32(nn.LayerNorm):
    """Layer norm with fp32 weights for a low-precision stream: computed in fp32, cast back."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)
        return out.to(x.dtype)


def check_precision(precision: str) -> None:
    """UserError unless `precision` is one of the reference's eight names."""
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision!r}: choose {', '.join(get_args(Precision))}")


def input_dtype(precision: str) -> torch.dtype:
    """dtype of the pictures that the image tower is given; fp32 under autocast."""
    if precision in ("bf16", "pure_bf16"):
        return torch.bfloat16
    return torch.float16 if precision in ("fp16", "pure_fp16") else torch.float32


def layer_norm_for(precision: str) -> type[nn.LayerNorm]:
    """The layer norm of native towers: fp16 and bf16 keep its weights in fp32."""
    return LayerNormFp32 if precision in ("fp16", "bf16") else LayerNorm


def cast_parameters(model: nn.Module, precision: str) -> None:
    """Cast a native model's parameters in place.

    pure_*: all of them. fp16, bf16: the weights of matrix products only (convolution, linear
    layers, attention, both projections); norms, embeddings and the logit scale stay fp32. Others:
    none.
    """
    dtype = input_dtype(precision)
    if dtype == torch.float32:
        return
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if precision.startswith("pure_") or _is_product_weight(module, name):
                parameter.data = parameter.data.to(dtype)


def _is_product_weight(module: nn.Module, name: str) -> bool:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return True
    return name in ("in_proj_weight", "in_proj_bias", "proj", "text_projection")
