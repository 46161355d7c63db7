"""What a piece of code leaves in memory, counted in two ways that know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Made(TorchDispatchMode):
    """Every storage that an operation makes, by a reference that does not keep it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id_of(tensor) not in given:
                storage = tensor.untyped_storage()
                self.storages[id_of(tensor)] = (StorageWeakRef(storage), storage.nbytes())
        return out


def id_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def bytes_left(run: Callable[[], Any], others: Iterable[Tensor]) -> tuple[int, int]:
    """(saved for backward, alive) after `run`, in bytes of unique storages.

    The first by saved-tensor hooks, without those of `others` (parameters, inputs). They do not see
    what a checkpoint keeps by itself; the second sees whatever is alive, the result of `run` too.
    """
    known = {id_of(tensor) for tensor in others}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in known:
            saved[id_of(tensor)] = tensor.detach()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    by_hooks = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del out
    saved.clear()

    with _Made() as made:
        out = run()
    alive = sum(size for reference, size in made.storages.values() if not reference.expired())
    del out
    return by_hooks, alive
