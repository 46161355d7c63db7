"""What of a block is kept for backward, and what is computed again: three ways to run one block.

none        everything autograd saves is kept
pointwise   results of matrix products and of attention are kept; LayerNorms, activations and casts
            are computed again: memory close to `full`, without a second forward
full        only the block's input is kept, and the whole block computed again (Chen et al. 2016,
            arXiv 1604.06174), as OpenCLIP's --grad-checkpointing does
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Literal["none", "pointwise", "full"]
RunBlock = Callable[..., Tensor]  # (block, *arguments of the block)

_aten = torch.ops.aten
# The products of a block, and attention by whatever name torch runs it
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_fused_attention_overrideable.default,
}
# namespaces of the ops of flash-attn 2 and 3 and of torch's varlen_attn
_ATTENTION = ("flash_attn", "flash_attn_3", "torch_attn")


def _keep_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op in _KEPT or getattr(op, "namespace", "") in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def run_plainly(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return block(*arguments)


def run_recomputing_all(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return block(*arguments)
    # nothing in a block is random, so there is no generator state to keep
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out


def run_recomputing_pointwise(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return block(*arguments)
    out: Tensor = checkpoint(
        block,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=functools.partial(create_selective_checkpoint_contexts, _keep_products),
    )
    return out


WAYS: dict[Recompute, RunBlock] = {
    "none": run_plainly,
    "pointwise": run_recomputing_pointwise,
    "full": run_recomputing_all,
}
