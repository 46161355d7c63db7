"""Retrieval among N pairs: for every picture the rank of its caption, and the other way round."""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
BLOCK_SCORES = 1 << 24  # scores held at a time: 64 MB in fp32


def retrieval_metrics(image_features: Tensor, text_features: Tensor) -> dict[str, float]:
    """Mean and median rank and recall at 1, 5 and 10, both ways: the reference's names and values.

    Features are (N, D); pair i is row i of both, and only that pair counts as right. Ranks start
    at 1. The median of an even number of ranks is the mean of the two in the middle, rounded down.
    """
    metrics: dict[str, float] = {}
    for name, queries, targets in (
        ("image_to_text", image_features, text_features),
        ("text_to_image", text_features, image_features),
    ):
        better = targets_ranked_before(queries, targets)
        metrics[f"{name}_mean_rank"] = better.double().mean().item() + 1
        metrics[f"{name}_median_rank"] = float(_median_rounded_down(better) + 1)
        for k in RECALL_AT:
            metrics[f"{name}_R@{k}"] = (better < k).double().mean().item()
    return metrics


def targets_ranked_before(queries: Tensor, targets: Tensor) -> Tensor:
    """How many of the N targets come before target i in the ranking of query i: int64 (N,).

    The ranking is by falling scalar product; equal scores rank by index, as a stable sort would put
    them. Counting gives that without sorting, and one block of queries at a time needs memory for
    block·N scores instead of N². (An equal score must not simply count as a hit: a collapsed model
    scores everything alike and has to come out at chance.)
    """
    n = len(queries)
    queries, targets = exact(queries), exact(targets)
    block = max(1, BLOCK_SCORES // max(n, 1))
    columns = torch.arange(n, device=queries.device)
    counts = []
    for start in range(0, n, block):
        rows = columns[start : start + block, None]  # (b, 1)
        scores = queries[start : start + block] @ targets.T  # (b, N)
        own = scores.gather(1, rows)
        before = (scores > own) | ((scores == own) & (columns < rows))
        counts.append(before.sum(dim=1))
    return torch.cat(counts)


def exact(features: Tensor) -> Tensor:
    """fp64 on CUDA, where fp32 products may be TF32 ones, whose rounding would change close ranks."""
    return features.double() if features.is_cuda else features


def _median_rounded_down(values: Tensor) -> int:
    ordered = values.sort().values
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return int(ordered[middle].item())
    return int((ordered[middle - 1] + ordered[middle]).item()) // 2
