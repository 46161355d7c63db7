"""The two steps of a block whose backward sums a bias's gradient on the way; features to the bit as without.

In training only, and where the layer is no more than its weight and bias; else the block's own steps run.
"""

from __future__ import annotations

from torch import Tensor

from fastclip.model.block import MLP, Attention, Block, Heads, both_layers, quick_gelu, to_heads
from fastclip.model.recompute import Pointwise, Projection, applied, is_plain
from fastclip_kernels.pointwise import activation_after_bias, heads_after_bias


def to_heads_summing(attention: Attention, x: Tensor, norm: Pointwise) -> Heads:
    """`block.to_heads`."""
    if not attention.training:
        return to_heads(attention, x, norm)
    linear = Projection(attention.in_proj_weight, attention.in_proj_bias.detach())
    qkv = attention.product(norm, x, linear)
    return heads_after_bias(qkv, attention.in_proj_bias, heads=attention.heads)


def both_layers_summing(mlp: MLP, x: Tensor, norm: Pointwise) -> Tensor:
    """`block.both_layers`."""
    if not (mlp.training and is_plain(mlp.c_fc)):
        return both_layers(mlp, x, norm)
    x = mlp.product(norm, x, Projection(mlp.c_fc.weight, mlp.c_fc.bias.detach()))
    x = activation_after_bias(x, mlp.c_fc.bias, quick=mlp.activation is quick_gelu)
    return applied(mlp.c_proj, x)


def sum_biases_in_passing(block: Block) -> None:
    """For blocks that are compiled: what their products keep is then the compiler's to decide."""
    block.attn.project = to_heads_summing
    block.mlp.run = both_layers_summing
