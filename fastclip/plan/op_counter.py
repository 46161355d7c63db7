"""Counts a step's operations while it runs on tensors that hold no numbers.

Products and attention: FLOPs, by the formulas that torch's FlopCounterMode uses. Everything else that is no view:
bytes read and written, what is changed in place counted twice. Memory: bytes of all storages that are alive at
once, without what lives within one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastclip_kernels import flops

Kind = Literal["products", "attention", "loss"]

_LOSSES = ("clip_alone", "clip_ranks", "siglip_block")
# They compute nothing: memory is handed out, or a tensor gets another name.
_IDLE = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "alias", "lift_fresh")
_UPDATE = ("_fused_", "_foreach_", "linalg_vector_norm", "zeros_like")


@dataclass(slots=True)
class Call:
    """An operation with arguments of certain shapes, and how often the step has it."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kind: Kind
    flops: int  # of one call
    count: int = 0


@dataclass(slots=True)
class Tally:
    calls: dict[str, Call] = field(default_factory=dict)
    passes: int = 0  # bytes
    update: int = 0  # bytes, by the optimiser and the norm of the gradients
    operations: int = 0
    peak: int = 0  # bytes

    def flops(self, *kinds: Kind) -> int:
        return sum(call.flops * call.count for call in self.calls.values() if call.kind in kinds)


class OpCounter(TorchDispatchMode):
    """Fills `tally`; `before` is what is alive already, `in_loss` whether the loss is being taken."""

    def __init__(
        self, before: Iterable[Tensor], in_loss: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        flops.register()
        self._in_loss = in_loss
        self.tally = Tally()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0
        for tensor in before:
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out
        packet = func.overloadpacket
        if packet in flop_registry:
            self._add_product(func, args, kwargs, out)
        elif not func.is_view and packet.__name__ not in _IDLE:
            self._add_pass(func, args, kwargs, out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return out

    def _add_product(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        kind: Kind = "products"
        # few pairs' losses are no ops, and make their gradients in forward
        if name.removesuffix("_backward") in _LOSSES or self._in_loss():
            kind = "loss"
        elif "attention" in name:
            kind = "attention"
        key = f"{kind} {name} {[_form(each) for each in tree_leaves((args, kwargs))]}"
        if key not in self.tally.calls:
            count = flop_registry[packet](*args, **kwargs, out_val=out)
            self.tally.calls[key] = Call(
                func, _without_numbers(args), _without_numbers(kwargs), kind, int(count)
            )
        self.tally.calls[key].count += 1
        self.tally.operations += 1

    def _add_pass(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        moved = sum(_bytes(each) for each in tree_leaves((args, kwargs, out)))
        given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)}
        given |= kwargs
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            # an in-place operation returns what it was given: that is the writing
            if written and not func._schema.returns:
                moved += sum(_bytes(each) for each in tree_leaves(given.get(argument.name)))
        if name.startswith(_UPDATE):
            self.tally.update += moved
        else:
            self.tally.passes += moved
        self.tally.operations += 1

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._alive.get(storage._cdata)
        if known is not None:
            if not known[0].expired():
                return
            self._total -= known[1]  # it was freed, and its place taken
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._total += storage.nbytes()
        if self._total > self.tally.peak:
            self._forget_freed()
            self.tally.peak = max(self.tally.peak, self._total)

    def _forget_freed(self) -> None:
        for place, (reference, count) in list(self._alive.items()):
            if reference.expired():
                del self._alive[place]
                self._total -= count


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _form(value: Any) -> Any:
    return (*value.shape, *value.stride(), str(value.dtype)) if isinstance(value, Tensor) else value


def _without_numbers(value: Any) -> Any:
    """The same arguments with meta tensors, which keep no storage of the step alive."""
    if isinstance(value, Tensor):
        with torch.utils._python_dispatch._disable_current_modes():
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
    if isinstance(value, dict):
        return {key: _without_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_numbers(each) for each in value)
    return value
