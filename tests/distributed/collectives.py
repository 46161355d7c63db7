"""What goes through the process group: every collective, in order, whoever issues it.

Collectives pass through torch's dispatcher, DDP's own too, and on a CPU backward runs in the thread
that asked for it: so a dispatch mode sees them all, and where they stand among other operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Collective(NamedTuple):
    name: str  # allreduce_, _allgather_base_, broadcast_, ...
    tensors: tuple[tuple[tuple[int, ...], torch.dtype], ...]  # shape and dtype of each input
    bytes: int  # of this rank's input


class Collectives(TorchDispatchMode):
    """Notes collectives in `calls`, and as "comm: NAME" in `trace` between the marks of `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []
        self.trace: list[str] = []

    def mark(self, what: str) -> None:
        self.trace.append(what)

    def named(self, name: str) -> list[Collective]:
        return [call for call in self.calls if call.name == name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            # _base_ ops take the output first
            inputs = list(_tensors(args[1] if name == "_allgather_base_" else args[0]))
            self.calls.append(
                Collective(
                    name,
                    tuple((tuple(t.shape), t.dtype) for t in inputs),
                    sum(t.numel() * t.element_size() for t in inputs),
                )
            )
            self.trace.append(f"comm: {name}")
        body = body_of(func)
        if body is not None:
            with self:
                return body(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def body_of(op: Any) -> Any:
    """The function behind a custom op of ours, whose insides a dispatch mode does not see; else None."""
    if op.namespace != "fastclip_kernels":
        return None
    from torch._library.custom_ops import _maybe_get_opdef

    definition: Any = _maybe_get_opdef(op)
    return definition._init_fn


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
