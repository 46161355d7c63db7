"""The two steps of a block whose backward sums a bias's gradient on the way; features to the bit as without."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastclip.model.block import Block
from fastclip_kernels.pointwise import activation_after_bias, heads_after_bias


def to_heads_summing(
    x: Tensor, weight: Tensor, bias: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`block.to_heads`."""
    return heads_after_bias(F.linear(x, weight, bias.detach()), bias, heads=heads)


def activated_summing(x: Tensor, linear: nn.Linear, quick_gelu: bool) -> Tensor:
    """`block.activated`."""
    x = F.linear(x, linear.weight, linear.bias.detach())
    return activation_after_bias(x, linear.bias, quick=quick_gelu)


def sum_biases_in_passing(block: Block) -> None:
    block.attn.project = to_heads_summing
    block.mlp.activate = activated_summing
