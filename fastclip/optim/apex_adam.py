"""NVIDIA apex's FusedAdam as AdamW, with torch's layout in every checkpoint.

apex keeps the number of updates in the group and not with each parameter; that apart its state is
torch's AdamW's, for float32 parameters. The package `apex` on PyPI is another project.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastclip.errors import EnvironmentProblem, UserError
from fastclip.optional import find

_REMEDY = (
    "NVIDIA's apex is needed, built with its CUDA extensions (https://github.com/NVIDIA/apex, From Source; "
    "`apex` on PyPI is another project); or drop the flag"
)
_MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARED = ("params", "lr", "betas", "eps", "weight_decay")  # of a group, in both layouts


def build_apex_adam(
    groups: list[dict[str, Any]],  # float32 parameters on one device
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """FusedAdam in AdamW's mode.

    EnvironmentProblem where it is not NVIDIA's, or does not run there; UserError for an empty group.
    """
    if not all(group["params"] for group in groups):
        raise UserError(
            "--optimizer-impl apex: everything that is decayed is locked, and apex takes no empty group; "
            "drop the flag"
        )
    device = groups[0]["params"][0].device
    found = _fused_adam(device)
    if isinstance(found, str):
        raise EnvironmentProblem(f"--optimizer-impl apex: {found}. {_REMEDY}")
    optimizer: Optimizer = _in_torchs_layout(found)(
        groups, lr=lr, betas=betas, eps=eps, adam_w_mode=True
    )
    return optimizer


def _fused_adam(device: torch.device) -> Any:
    """The class, once it has made a step on `device`; else the reason in words why not."""
    for name in ("apex", "apex.optimizers"):
        module = find(name)
        if isinstance(module, str):
            return " ".join(module.split())
    fused_adam = getattr(module, "FusedAdam", None)
    if fused_adam is None:
        return "the installed apex has no FusedAdam"
    # Extensions that were not built, or for another torch, raise whatever they like.
    try:
        tiny = nn.Parameter(torch.zeros(1, device=device))
        tiny.grad = torch.ones_like(tiny)
        fused_adam([tiny], lr=0.1, adam_w_mode=True).step()
    except Exception as error:
        text = " ".join(str(error).split())
        return f"FusedAdam does not run on {device}: {type(error).__name__}: {text}"
    return fused_adam


def _in_torchs_layout(fused_adam: Any) -> Any:
    class ApexAdamW(fused_adam):
        def zero_grad(self, set_to_none: bool = True) -> None:
            Optimizer.zero_grad(self, set_to_none)  # apex's own takes no argument

        def state_dict(self) -> dict[str, Any]:
            return to_torchs_layout(super().state_dict())

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(from_torchs_layout(state_dict))

    return ApexAdamW


def to_torchs_layout(state: dict[str, Any]) -> dict[str, Any]:
    """apex's state as torch's AdamW would have written it: `step` with each parameter that has moments."""
    defaults = torch.optim.AdamW([torch.zeros(1)]).state_dict()["param_groups"][0]
    groups = [{**defaults, **{k: g[k] for k in _SHARED}} for g in state["param_groups"]]
    steps = {i: float(g.get("step", 0)) for g in state["param_groups"] for i in g["params"]}
    moments = {
        i: {"step": torch.tensor(steps[i]), **{k: values[k] for k in _MOMENTS}}
        for i, values in state["state"].items()
    }
    return {"state": moments, "param_groups": groups}


def from_torchs_layout(state: dict[str, Any]) -> dict[str, Any]:
    """The other way. ValueError where parameters of one group were updated unequally often."""
    moments = state["state"]
    groups = []
    for group in state["param_groups"]:
        steps = {int(moments[i]["step"]) for i in group["params"] if i in moments}
        if len(steps) > 1:
            raise ValueError(
                f"apex counts updates once a group, and parameters of one group have {sorted(steps)} "
                "behind them; resume with --optimizer-impl torch"
            )
        groups.append({**{k: group[k] for k in _SHARED}, "bias_correction": True})
        if steps:  # apex begins with a group that has none
            groups[-1]["step"] = steps.pop()
    return {
        "state": {i: {k: values[k] for k in _MOMENTS} for i, values in moments.items()},
        "param_groups": groups,
    }
