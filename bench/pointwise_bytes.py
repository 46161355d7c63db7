"""Bytes that the passes between a block's products read and write, counted without a GPU.

    python -m bench.pointwise_bytes

Counted three ways for one block, forward and backward, under bf16 autocast at b = 896: op by op as
eager torch runs it, as torch.compile's generated kernels do, and the least there can be. The least is
each activation once in and once out of each group of passes that no product or attention stands
between; the groups are the lines of `least`. Products and attention are left out everywhere, the
casts of weights to bf16 and of their gradients back are a group of their own.

Modelled time: bytes over the data sheet's bandwidth, products at 80 % of its bf16 FLOP/s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.inductor_for_gpu import Kernel, kernels_of
from fastclip.model.block import Block
from fastclip.model.fused_bias import sum_biases_in_passing
from fastclip.model.precision import LayerNormFp32

BANDWIDTH = {"A100-40G": 1555e9, "A100-80G": 2039e9}
PRODUCTS = 0.8 * 312e12  # FLOP/s
_aten = torch.ops.aten


class Case(NamedTuple):
    name: str
    rows: int
    tokens: int
    width: int
    stream: torch.dtype  # of the residual stream

    @property
    def product_flops(self) -> int:
        """Of the four products of a block, forward and backward."""
        return 3 * 24 * self.rows * self.tokens * self.width**2


# The text tower's embeddings are fp32 under autocast, and so is the stream that starts with them.
# 140 rows: 896 captions of 11.4 tokens packed in rows of 77, with what packing leaves unused.
CASES = [
    Case("ViT-B-32-256 image", 896, 65, 768, torch.bfloat16),
    Case("ViT-B-32-256 text, packed", 140, 77, 512, torch.float32),
    Case("ViT-B-32-256 text, dense", 896, 77, 512, torch.float32),
    Case("ViT-L-14 image", 896, 257, 1024, torch.bfloat16),
]


def least(case: Case) -> dict[str, int]:
    """Bytes by group. s: the stream, p: the products' dtype (2 bytes)."""
    p, s = 2, case.stream.itemsize
    per_element = {
        "norm": s + p,  # stream in, normed out
        "residual + norm": (s + p) + (s + p),  # stream, attention in; stream, normed out
        "activation": 4 * p + 4 * p,
        "residual": (s + p) + s,
        # what products need in p, and the column sums of biases, come with what is read anyway
        "gradient in": 0 if s == p else s + p,  # the stream's gradient for the last product
        "activation backward": (4 * p + 4 * p) + 4 * p,  # gradient, input in; gradient out
        # normed's gradient, stream, its gradient in; its gradient out, and again for a product
        "residual + norm backward": (p + s + s) + s + (0 if s == p else p),
        "heads' gradients side by side": 3 * p + 3 * p,
        "norm backward": (p + s + s) + s,
    }
    elements = case.rows * case.tokens * case.width
    weights = 12 * case.width**2
    return {
        **{group: elements * size for group, size in per_element.items()},
        "casts of weights": weights * (4 + p) + weights * (p + 4),
    }


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the op that torch takes on a GPU (`attention.Attend`)."""
    out = _aten._scaled_dot_product_flash_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )[0]
    attended: Tensor = out.transpose(1, 2)
    return attended


def _inputs(case: Case) -> tuple[Block, Tensor]:
    block = Block(case.width, case.width // 64, 4.0, None, False, LayerNormFp32)
    shape = (case.rows, case.tokens, case.width)
    return block, torch.empty(shape, dtype=case.stream, requires_grad=True)


def _run(block: Block, x: Tensor) -> Tensor:
    return block(x, flash)


def generated(case: Case, *, ours: bool = True) -> list[Kernel]:
    """What a compiled block launches; with `ours`, as a run on a GPU has it."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        block, x = _inputs(case)
        if ours:
            sum_biases_in_passing(block)
        return kernels_of(_run, block, x)


class _Bytes(TorchDispatchMode):
    """Counts what each op that is no view, product or attention reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        apart = func.is_view or any(
            word in func.name() for word in ("mm", "flash_attention", "empty", "detach")
        )
        if func.namespace == "aten" and not apart:
            tensors = tree_leaves((args, kwargs, out))
            self.total += sum(t.numel() * t.itemsize for t in tensors if isinstance(t, Tensor))
        return out


def eager(case: Case) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True), _Bytes() as count:
        block, x = _inputs(case)
        count.total = 0
        with torch.autocast("cpu", torch.bfloat16):
            out = _run(block, x)
        out.backward(torch.empty_like(out))
    return count.total


_HEADINGS = (
    "block", "eager", "compiled", "and our kernels", "least", "of the least",
    *(f"of the products' time, {chip}" for chip in BANDWIDTH), "at the least",
)  # fmt: skip


def row(case: Case) -> tuple[str, ...]:
    lowest = sum(least(case).values())
    compiled, ours = (
        sum(kernel.bytes for kernel in generated(case, ours=ours)) for ours in (False, True)
    )
    products = case.product_flops / PRODUCTS
    return (
        case.name,
        *(f"{size / 1e9:.2f}" for size in (eager(case), compiled, ours, lowest)),
        f"{ours / lowest:.2f} ({compiled / lowest:.2f} without our kernels)",
        *(f"{ours / rate / products:.0%}" for rate in BANDWIDTH.values()),
        " and ".join(f"{lowest / rate / products:.0%}" for rate in BANDWIDTH.values()),
    )


def main() -> None:
    print("GB read and written by the passes of one block, forward and backward\n")
    for cells in (_HEADINGS, ("---",) * len(_HEADINGS)):
        print(f"| {' | '.join(cells)} |")
    for case in CASES:
        print(f"| {' | '.join(row(case))} |", flush=True)


if __name__ == "__main__":
    main()
