"""Stand-ins for the two projects that are called apex."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor


class FusedAdam(torch.optim.Optimizer):
    """NVIDIA's, as its arguments, its state and its refusals are; computed by plain torch, in float64.

    The step is counted once a group, as a number of Python; `zero_grad` takes no argument; settings that
    torch's AdamW has beside these do not exist.
    """

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
        weight_decay=0.0, amsgrad=False, set_grad_none=True, capturable=False, master_weights=False,
    ):  # fmt: skip
        assert adam_w_mode
        assert (amsgrad, capturable, master_weights) == (False, False, False)
        defaults = {
            "lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["params"][0].device  # noqa: B018 - it looks at the first, so there must be one
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p).float()
            state["exp_avg_sq"] = torch.zeros_like(p).float()
        first, second = group["betas"]
        state["exp_avg"].mul_(first).add_(p.grad, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
        mean = state["exp_avg"].double() / (1 - first ** group["step"])
        square = state["exp_avg_sq"].double() / (1 - second ** group["step"])
        change = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p.double()
        p.copy_(p.double() - group["lr"] * change)


class WithoutExtensions(FusedAdam):
    """NVIDIA's, installed from source without the compiled parts."""

    def __init__(self, *args, **kwargs):
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")


class ForAnotherDevice(FusedAdam):
    """NVIDIA's, asked to update parameters that are not on a GPU."""

    def step(self, closure=None):
        raise RuntimeError("expected input\n to be on cuda")


def install_nvidias(
    monkeypatch: pytest.MonkeyPatch, fused_adam: type[FusedAdam] | None = FusedAdam
) -> None:
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    apex.optimizers = optimizers  # type: ignore[attr-defined]
    if fused_adam is not None:
        optimizers.FusedAdam = fused_adam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
