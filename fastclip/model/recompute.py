"""What of a block is kept for backward, and what is computed again.

none        everything autograd saves is kept
pointwise   LayerNorms, activations and casts are computed again: no matrix product and no
            attention, so that memory comes close to `full` without a second forward
full        only the block's input is kept, and the whole block computed again (Chen et al. 2016,
            arXiv 1604.06174), as OpenCLIP's --grad-checkpointing does

What each keeps in bytes: `activation_bytes.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastclip_kernels import onednn

Recompute = Literal["none", "pointwise", "full"]  # in the order of falling memory

Pointwise = Callable[[Tensor], Tensor]  # a norm or an activation
RunBlock = Callable[..., Tensor]  # (block, *arguments of the block)


class Linear(Protocol):
    """nn.Linear, or a weight and a bias that are no module."""

    @property
    def weight(self) -> Tensor: ...  # (N, K)

    @property
    def bias(self) -> Tensor: ...  # (N,)

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Projection(NamedTuple):
    """A linear layer made of two tensors."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


Product = Callable[[Pointwise, Tensor, Linear], Tensor]


class Ways(NamedTuple):
    """How a stack runs its blocks, and each block its products."""

    training: RunBlock
    evaluating: RunBlock
    product: Product


Choose = Callable[[Recompute], Ways]


def product_of(
    pointwise: Pointwise,
    x: Tensor,  # (..., K)
    linear: Linear,
) -> Tensor:  # (..., N)
    """linear(pointwise(x)); both operands of the product stay in memory."""
    return applied(linear, pointwise(x))


def is_plain(linear: Linear) -> bool:
    """Whether a layer is no more than its weight and bias: no subclass (as an adapter's), no hooks of its own or on
    all modules, no `forward` put in the place of its class's.

    Of others the parameters are not known here, nor what hooks make of the result.
    """
    if type(linear) is nn.Linear:
        every = nn.modules.module
        hooks = (linear._forward_pre_hooks, linear._forward_hooks,
                 linear._backward_pre_hooks, linear._backward_hooks,
                 every._global_forward_pre_hooks, every._global_forward_hooks,
                 every._global_backward_pre_hooks, every._global_backward_hooks)  # fmt: skip
        return not any(hooks) and "forward" not in vars(linear)
    return isinstance(linear, Projection)


def applied(linear: Linear, x: Tensor) -> Tensor:
    """linear(x), its product by the faster of torch's libraries."""
    if is_plain(linear) and onednn.takes(x, linear.weight):
        return onednn.linear(x, linear.weight, linear.bias)
    return linear(x)


def product_of_recomputed(pointwise: Pointwise, x: Tensor, linear: Linear) -> Tensor:
    """The same, bit for bit, that keeps x for backward and not pointwise(x) beside it.

    A compiler that sees forward and backward decides such things by itself, and so gets the plain
    form.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not is_plain(linear):
        return product_of(pointwise, x, linear)
    parameters: Iterable[Tensor] = ()
    again = pointwise
    if isinstance(pointwise, nn.Module):
        # hooks on the module see its forward pass once, as without
        parameters, again = pointwise.parameters(), pointwise.forward
    out: Tensor = _ProductOfRecomputed.apply(
        pointwise, again, linear, x, linear.weight, linear.bias, *parameters
    )
    return out


class _ProductOfRecomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pointwise: Pointwise,
        again: Pointwise,  # the same for backward
        linear: Linear,
        x: Tensor,
        weight: Tensor,  # its own, as `bias`: what autograd is to know of is an argument
        bias: Tensor,
        *parameters: Tensor,  # of `pointwise`
    ) -> Tensor:
        device = x.device.type
        # under autocast a norm may compute in another dtype than without
        ctx.autocast = None
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            ctx.autocast = torch.autocast(device, torch.get_autocast_dtype(device))
        ctx.again = again
        ctx.save_for_backward(x, weight, *parameters)
        return applied(linear, pointwise(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, weight, *parameters = ctx.saved_tensors
        _, _, _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        x = saved.detach().requires_grad_(needs_x)
        with torch.enable_grad(), ctx.autocast or contextlib.nullcontext():
            operand = ctx.again(x)
        rows = grad.flatten(0, -2)
        d_weight = d_bias = None  # autograd casts both to their parameter's dtype
        if needs_weight:
            d_weight = onednn.product(rows.t(), operand.detach().flatten(0, -2).to(grad.dtype))
        if needs_bias:
            d_bias = rows.sum(0)
        leaves = (x, *parameters)
        gradients: Iterator[Tensor] = iter(())
        if operand.requires_grad:
            d_operand = onednn.product(rows, weight.to(grad.dtype))
            d_operand = d_operand.view(operand.shape).to(operand.dtype)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = iter(torch.autograd.grad(operand, wanted, d_operand))
        d_x, *d_parameters = (next(gradients) if leaf.requires_grad else None for leaf in leaves)
        return None, None, None, d_x, d_weight, d_bias, *d_parameters


def run_plainly(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return block(*arguments)


def run_recomputing_all(block: Callable[..., Tensor], *arguments: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return block(*arguments)
    # nothing in a block is random, so there is no generator state to keep
    out: Tensor = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return out


def choose(way: Recompute) -> Ways:
    run = run_recomputing_all if way == "full" else run_plainly
    product = product_of_recomputed if way == "pointwise" else product_of
    return Ways(run, run, product)
