"""The optimiser, and its state in the layout that every OpenCLIP checkpoint has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastclip.config.train_config import OptimConfig
from fastclip.errors import DataError, UserError
from fastclip.optim.apex_adam import build_apex_adam
from fastclip.optim.param_groups import split_by_decay
from fastclip.optional import require

# How an update is computed on this machine, not what it computes: never taken from a checkpoint.
_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """AdamW over (not decayed, decayed) parameters, or the timm optimiser that `--opt timm/NAME` names.

    Raises UserError for a name that timm does not know, EnvironmentProblem where timm, or apex that was asked
    for, is missing.
    """
    if config.opt.lower().startswith("timm/"):
        return _timm_optimizer(config, model)
    assert config.lr is not None
    assert config.beta1 is not None
    assert config.beta2 is not None
    assert config.eps is not None
    not_decayed, decayed = split_by_decay(model)
    groups: list[dict[str, Any]] = [
        {"params": not_decayed, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": config.wd},
    ]
    betas = (config.beta1, config.beta2)
    if config.optimizer_impl == "apex":
        return build_apex_adam(groups, lr=config.lr, betas=betas, eps=config.eps)
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=betas,
        eps=config.eps,
        fused=_fused_available(not_decayed + decayed),
    )


def _fused_available(parameters: list[nn.Parameter]) -> bool:
    """torch's one-kernel AdamW exists for these device types; elsewhere torch picks its default."""
    return all(p.device.type in ("cuda", "cpu", "xpu", "mps") for p in parameters)


def _timm_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    factory = require("timm.optim", f"--opt {config.opt}", "pip install timm")
    name = config.opt.lower().split("timm/")[-1]
    options: dict[str, Any] = {}
    if config.beta1 is not None:
        options["betas"] = (config.beta1, config.beta2)
    if config.momentum is not None:
        options["momentum"] = config.momentum
    try:
        optimizer: Optimizer = factory.create_optimizer_v2(
            model, name, lr=config.lr, weight_decay=config.wd, eps=config.eps, **options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--opt {config.opt}: timm cannot build it: {error}") from error
    return optimizer


def describe(config: OptimConfig, optimizer: Optimizer) -> str:
    """The reference's log line: `Created AdamW (adamw) optimizer: lr: ..., weight_decay: ..., ...`."""
    defaults = {**optimizer.defaults, "weight_decay": config.wd}
    values = ", ".join(f"{key}: {value}" for key, value in defaults.items())
    return f"Created {type(optimizer).__name__} ({config.opt}) optimizer: {values}"


def portable_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The state as plain torch would have written it: `fused=True` is our choice, not part of the run."""
    state = optimizer.state_dict()
    defaults = torch.optim.AdamW([torch.zeros(1)], fused=None).param_groups[0]
    groups = [
        {k: defaults[k] if k in _IMPLEMENTATION and k in defaults else v for k, v in group.items()}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any], source: str) -> list[str]:
    """Load moments and step counts; hyper-parameters stay those of the flags.

    Returns one line for each hyper-parameter that the flags change against the checkpoint (the reference keeps the
    checkpoint's without a word). Raises DataError where the state does not fit this optimiser.
    """
    own_groups = [
        {k: v for k, v in g.items() if k not in ("params", "step")}  # apex's count is no setting
        for g in optimizer.param_groups
    ]
    saved_groups = state.get("param_groups", [])
    counts = [len(g["params"]) for g in saved_groups]
    own_counts = [len(g["params"]) for g in optimizer.param_groups]
    if counts != own_counts:
        raise DataError(
            f"{source}: its optimiser state is for groups of {counts} parameters, this run has {own_counts}; "
            "was it written with other --lock-… or --opt flags?"
        )
    # torch places `step` by the loaded group's `fused`, so it must be ours before loading.
    merged = [
        {**saved, **{k: own[k] for k in _IMPLEMENTATION if k in own}}
        for saved, own in zip(saved_groups, own_groups, strict=True)
    ]
    try:
        optimizer.load_state_dict({**state, "param_groups": merged})
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DataError(f"{source}: its optimiser state cannot be loaded: {error}") from error
    changes = []
    for index, (group, own) in enumerate(zip(optimizer.param_groups, own_groups, strict=True)):
        for key, value in own.items():
            if key in group and group[key] != value and key not in ("lr", "initial_lr"):
                changes.append(
                    f"group {index}: {key} {group[key]} in the checkpoint, {value} from the flags"
                )
            group[key] = value
    return changes
