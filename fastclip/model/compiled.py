"""Blocks through torch.compile: one graph a block, so that what lies between its products is fused.

What is compiled is a way of `recompute.WAYS` applied to a block, not a block's own forward: the
recomputation is then part of the graph, and one graph serves every block of a tower, because
parameters, packed captions' masks and segment starts are inputs of it. Modules are not touched, so
state-dict names stay, and DDP sees each block's gradients as that block's backward ends.
"""

from __future__ import annotations

import torch

from fastclip.model.recompute import WAYS, Recompute, RunBlock

# Graphs that a run may need: two towers, their last blocks, two sizes of packed captions, with and
# without gradients (--accum-freq), frozen and trained blocks. torch's own limit of 8 counts them
# all together, for they are calls of one function, and runs whatever comes later uncompiled.
_MOST_GRAPHS = 64


def compiled_ways(backend: str = "inductor") -> dict[Recompute, RunBlock]:
    """`WAYS`, each compiled at its first call for each shape. `backend`: torch.compile's."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, _MOST_GRAPHS)
    return {
        name: torch.compile(way, dynamic=False, backend=backend)  # shapes of a run are few
        for name, way in WAYS.items()
    }
