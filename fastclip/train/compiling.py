"""Whether a run's blocks go through torch.compile: decided here, once, before DDP wraps the model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn import functional as F

from fastclip.config.train_config import TrainConfig
from fastclip.errors import EnvironmentProblem

logger = logging.getLogger(__name__)


def set_up_compiling(model: Any, config: TrainConfig, device: torch.device) -> str:
    """Compile `model` for training where that is asked for, or on a GPU where nothing speaks against it.

    Models of ours block by block; others, with --torchcompile only, as a whole. In place and without a name changed.
    Returns what is compiled, or why nothing is. EnvironmentProblem where --torchcompile is given and nothing can be
    compiled here.
    """
    asked, ours = config.model.torchcompile, hasattr(model, "compile_blocks")
    if not asked:
        reason = _why_not(config, device, ours)
        if reason is not None:
            return _said(logging.INFO, f"blocks are not compiled: {reason}")
    problem = compiler_problem(device)
    if problem is not None and asked:
        raise EnvironmentProblem(
            f"--torchcompile: torch.compile does not work here ({problem}); drop the flag"
        )
    if problem is not None:
        return _said(
            logging.WARNING,
            "blocks are not compiled, so LayerNorms and activations are slower: torch.compile does not work here "
            f"({problem}); --no-fused-pointwise says that this is all right",
        )
    # Blocks are compiled inside DDP's forward, where dynamo would split each graph at DDP's bucket boundaries. A
    # block's gradients are ready together when its own backward ends: nothing is gained by a split.
    torch._dynamo.config.optimize_ddp = False
    if ours:
        model.compile_blocks(sum_biases=device.type == "cuda")
        return _said(logging.INFO, "blocks are compiled, one graph for all blocks of a tower")
    model.compile()
    return _said(logging.INFO, "the model is compiled as a whole: it is not one of fastclip's own")


def _said(level: int, line: str) -> str:
    logger.log(level, "%s", line)
    return line


def _why_not(config: TrainConfig, device: torch.device, ours: bool) -> str | None:
    """Why a run that does not ask for it is not compiled; None if it is."""
    if not config.model.fused_pointwise:
        return "--no-fused-pointwise"
    if device.type != "cuda":
        return f"on {device.type} only with --torchcompile"
    if config.deterministic:
        return "--deterministic: what a compiler chose last time it may not choose again"
    if not ours:
        return f"{config.model.name} is not one of fastclip's own models"
    return None


def compiler_problem(device: torch.device) -> str | None:
    """What keeps torch.compile from working on `device`, found by trying it; None if nothing does."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.autograd.backward(torch.compile(F.gelu)(x).sum())
    except Exception as error:  # a missing compiler, Triton, driver: each raises its own kind
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return None
