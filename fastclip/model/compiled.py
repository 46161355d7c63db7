"""Blocks through torch.compile: one graph a block, so that what lies between its products is fused.

What is compiled is the way to run a block (`recompute.py`), not a block's own forward: the
recomputation is then part of the graph, and one graph serves every block of a tower, because
parameters, packed captions' masks and segment starts are inputs of it. Modules are not touched, so
state-dict names stay, and DDP sees each block's gradients as that block's backward ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fastclip.model.recompute import (
    Recompute,
    RunBlock,
    Ways,
    product_of,
    run_plainly,
    run_recomputing_all,
)

# Graphs that a run may need: two towers, their last blocks, two sizes of packed captions, with and
# without gradients (--accum-freq), frozen and trained blocks. torch's own limit of 8 counts them
# all together, for they are calls of one function, and runs whatever comes later uncompiled.
_MOST_GRAPHS = 64

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
# namespaces of the ops of flash-attn 2 and 3, of torch's varlen_attn and of attention of our own
_ATTENTION = ("flash_attn", "flash_attn_3", "torch_attn", "fastclip_kernels")


def _keep_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op in _KEPT or getattr(op, "namespace", "") in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def run_keeping_products(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`pointwise` for a compiler: it sees the block's whole graph, and is told what to keep of it.

    What `product_of_recomputed` does outside of a graph.
    """
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


RUNS: dict[Recompute, RunBlock] = {
    "none": run_plainly,
    "pointwise": run_keeping_products,
    "full": run_recomputing_all,
}


class CompiledChoice:
    """`recompute.choose`, each way compiled at its first call for each shape. In evaluation nothing is
    compiled: its batches have any number of members, and every number would be.
    """

    def __init__(self, backend: str = "inductor") -> None:  # of torch.compile
        self._backend = backend
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, _MOST_GRAPHS)
        self._compiled = {
            name: torch.compile(run, dynamic=False, backend=backend)  # shapes of a run are few
            for name, run in RUNS.items()
        }

    def __call__(self, way: Recompute) -> Ways:
        return Ways(self._compiled[way], RUNS[way], product_of)

    def __reduce__(self) -> tuple[type[CompiledChoice], tuple[str]]:
        return CompiledChoice, (self._backend,)
