"""Which parameters are decayed (OpenCLIP's rule, by name and number of dimensions)."""

from __future__ import annotations

from torch import nn


def excluded_from_decay(name: str, parameter: nn.Parameter) -> bool:
    """Vectors, scalars, and whatever is called a norm, a bias or the logit scale.

    Positional and token embeddings and the projections do decay: so it is in the reference, and the order of the
    optimiser's state in a checkpoint depends on it.
    """
    return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(not decayed, decayed) trainable parameters, each in the order of `named_parameters`."""
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    not_decayed = [p for n, p in trainable if excluded_from_decay(n, p)]
    decayed = [p for n, p in trainable if not excluded_from_decay(n, p)]
    return not_decayed, decayed
