"""Accuracy by group, as WILDS defines it (Koh et al. 2021, section 3): the worst group counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def group_accuracy(
    name: str,
    right: Tensor,  # bool (N,)
    groups: Mapping[str, Tensor],  # field name -> int64 (N,); crossed where there are several
) -> dict[str, float]:
    """`NAME_avg`, per group `NAME_FIELD:VALUE` and `count_FIELD:VALUE`, and `NAME_wg`, the worst.

    Only groups with members are named, and only they can be the worst.
    """
    values = torch.stack([groups[field] for field in groups], dim=1)  # (N, fields)
    found, position = values.unique(dim=0, return_inverse=True)
    counts = position.bincount(minlength=len(found))
    hits = torch.zeros(len(found), dtype=torch.float64).index_add_(0, position, right.double())
    accuracy = (hits / counts).tolist()
    metrics = {f"{name}_avg": right.double().mean().item()}
    for row, share, count in zip(found.tolist(), accuracy, counts.tolist(), strict=True):
        label = _label(list(groups), row)
        metrics[f"{name}_{label}"] = share
        metrics[f"count_{label}"] = float(count)
    metrics[f"{name}_wg"] = min(accuracy)
    return metrics


def _label(fields: Sequence[str], row: Sequence[int]) -> str:
    return "_".join(f"{field}:{value}" for field, value in zip(fields, row, strict=True))
