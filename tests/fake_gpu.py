"""A GPU that is not there: shapes, dtypes and devices as on one, and a list of where the host waits.

Tensors on "cuda" under FakeTensorMode hold no numbers, so an operation that hands one to the host
cannot pass unnoticed. What it cannot see is a wait inside one of torch's own kernels.

torch's autograd engine asks the driver for a stream before it goes back through a "cuda" tensor,
fake or not. So on this GPU backward is a stand-in, and the formulas of autograd are watched on a
fake CPU instead, where reading a number is seen likewise.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastclip_kernels.backend import Choice
from tests.distributed.collectives import body_of

DEVICE = torch.device("cuda:0")
_COPIES = ("_to_copy", "copy_", "_copy_from")


class HostWaits(TorchDispatchMode):
    """Names each operation at which the host would wait, in `found`; such an operation then raises if
    its result depends on numbers. Runs ops of ours by what is inside them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        body = body_of(func)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        self.operations += func.namespace != "prim"
        name = func.overloadpacket.__name__
        if _reads_numbers(func, name, args, kwargs) or (
            name in _COPIES and _copy_waits(name, args, kwargs)
        ):
            self.found.append(name)
        return func(*args, **kwargs)


def _on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _reads_numbers(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not any(_on_gpu(each) for each in args):
        return False
    if name.startswith("index"):  # only a mask has a number of elements that the host must learn
        indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _copy_waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Any copy to the host; and a copy to the GPU unless it is told not to block."""
    if name == "_to_copy":
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        blocks = not kwargs.get("non_blocking", False)
    else:
        source, target = args[1].device, args[0].device
        blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if source.type == target.type:
        return False
    return target.type == "cpu" or blocks


def give_gradients(tensors: Any, gradients: Any = None) -> None:
    """What `torch.autograd.backward` leaves behind: a gradient for each leaf that was used."""
    outputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    waiting, done = [output.grad_fn for output in outputs], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in done:
            continue
        done.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaf.grad = torch.empty_like(leaf)
        waiting += [following for following, _ in node.next_functions]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """An A100 as far as torch's questions about it go."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        generator = torch.Generator
        patch.setattr(torch, "Generator", lambda device=None: generator())
        patch.setattr(torch.autograd, "backward", give_gradients)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        # bodies of ops run here too, and a Triton kernel needs a real GPU
        ops = importlib.import_module("fastclip_kernels.patch_embed.ops")
        patch.setattr(ops, "choose", lambda *_: Choice("torch", "there is no GPU"))
        yield
