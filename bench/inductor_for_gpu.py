"""What torch.compile would launch on an A100, found on a machine without a GPU.

A function is traced on fake tensors of the CPU, its graphs are moved to "cuda", and inductor
generates its Triton code for them with the properties of an A100 in place of a device's. Nothing is
compiled to machine code and nothing runs. This reaches into torch's internals: it is written for the
versions of torch that scripts/constraints.txt names.

What differs from tracing on a GPU: attention must be an op with a name of its own (on the CPU torch
would take its CPU form), and autocast is that of the CPU, which casts the same products but leaves
LayerNorm alone, so that a block must be given one that computes in fp32 itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.compile_fx as compile_fx
import torch._inductor.scheduler as scheduler
from torch import Tensor
from torch._inductor import config
from torch._inductor.graph import GraphLowering

_A100 = SimpleNamespace(
    name="NVIDIA A100-SXM4-40GB",
    major=8,
    minor=0,
    multi_processor_count=108,
    total_memory=40 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block_optin=166912,
    L2_cache_size=40 << 20,
)


OWN = "fastclip_kernels"  # ops whose bytes count: each input once, each output once


class Kernel(NamedTuple):
    """One generated kernel, or one of `OWN`."""

    direction: str  # "forward" or "backward"
    moved: dict[str, int]  # bytes read and written, by buffer

    @property
    def bytes(self) -> int:
        return sum(self.moved.values())


class _Generated(Exception):
    """Ends the compilation once there is code."""


def kernels_of(function: Callable[..., Tensor], *inputs: Any) -> list[Kernel]:
    """Kernels of `function` and of its backward that are no products, attention or views.

    Call it under a FakeTensorMode, with fake tensors. Bytes are inductor's own count: each buffer of
    a kernel once, at the size of what is touched of it.
    """
    kernels: list[Kernel] = []

    def compile_graph(graph: Any, inputs: Any, **options: Any) -> Any:
        runs = copy.deepcopy(graph)  # on fake tensors, in place of the kernels
        _generate(graph, inputs, options, kernels)

        def run(arguments: list[Any]) -> Any:
            taken = list(arguments)
            arguments.clear()
            return runs(*taken)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(graph: Any, inputs: Any) -> Any:
        return compile_fx.compile_fx(graph, inputs, inner_compile=compile_graph)

    torch._dynamo.reset()
    out = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)(*inputs)
    with torch.autocast("cpu", enabled=False):
        out.sum().backward()
    return kernels


def _generate(graph: Any, inputs: Any, options: Any, kernels: list[Kernel]) -> None:
    direction = "backward" if options.get("is_backward") else "forward"

    def generate(self: GraphLowering) -> None:
        self.codegen()
        for node in self.scheduler.nodes:
            operation: Any = node.node
            own = getattr(getattr(operation, "op_overload", None), "namespace", "") == OWN
            if own or not (node.is_extern() or isinstance(node, scheduler.NopKernelSchedulerNode)):
                moved = {
                    name: int(size)
                    for name, size in node.get_read_write_buffer_accesses(True, not own).items()
                }
                for out in operation.outputs if own else ():
                    moved[out.get_name()] = int(out.get_numel()) * out.get_dtype().itemsize
                kernels.append(Kernel(direction, moved))
        raise _Generated

    on_gpu = [_moved(value) for value in inputs]
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, value in zip(placeholders, on_gpu, strict=True):
        node.meta["val"] = value
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
    with _as_if_on_a100(), mock.patch.object(GraphLowering, "_compile_to_module", generate):
        try:
            compile_fx.compile_fx_inner(graph, on_gpu, **options)
        except Exception as error:
            if not isinstance(getattr(error, "inner_exception", error), _Generated):
                raise


def _moved(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


@contextlib.contextmanager
def _as_if_on_a100() -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32))
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: _A100,
        "get_device_capability": lambda device=None: (8, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "device": lambda index: contextlib.nullcontext(),
        "get_rng_state": lambda *device: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *state: None,
        "synchronize": lambda device=None: None,
        "_lazy_init": lambda: None,
    }
    interface = device_interface.CudaInterface
    properties = staticmethod(lambda device=None: _A100)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        for name, value in cuda.items():
            enter(mock.patch.object(torch.cuda, name, value))
        for owner in (interface, interface.Worker):
            enter(mock.patch.object(owner, "get_device_properties", properties))
        enter(mock.patch.object(interface, "current_device", staticmethod(lambda: 0)))
        enter(mock.patch.object(scheduler, "has_triton", return_value=True))
        enter(mock.patch.object(driver, "_active", target))
        enter(config.patch(fx_graph_cache=False, compile_threads=1))
        yield
