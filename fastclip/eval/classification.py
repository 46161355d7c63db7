"""Figures of a classification: CLIP_benchmark's names and definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOP = 5
_LOGIT_SCALE = 100.0  # as everywhere in zero-shot classification; it changes no ranking
_BLOCK_ROWS = 8192


class Predictions(NamedTuple):
    """What N pictures were taken for."""

    best: Tensor  # int64 (N,)
    top: Tensor  # int64 (N, min(TOP, classes)), best first


def predict(features: Tensor, score: Callable[[Tensor], Tensor]) -> Predictions:
    """The best classes of every row of `features` (N, D), by `score`, which gives (rows, classes).

    Results are on the CPU; scores are never held for more than a block of rows.
    """
    best, top = [], []
    for block in features.split(_BLOCK_ROWS):
        scores = score(block)
        best.append(scores.argmax(dim=1).cpu())
        top.append(scores.topk(min(TOP, scores.shape[1]), dim=1).indices.cpu())
    return Predictions(torch.cat(best), torch.cat(top))


def zero_shot_scores(classifier: Tensor) -> Callable[[Tensor], Tensor]:
    """Scores by a zero-shot classifier (D, classes) with unit-norm columns."""
    return lambda features: _LOGIT_SCALE * features @ classifier


def classification_metrics(
    predictions: Predictions,
    labels: Tensor,  # int64 (N,)
    num_classes: int,
) -> dict[str, float | None]:
    """`acc1`, `acc5` (None with fewer than five classes) and `mean_per_class_recall`, as fractions."""
    hits = predictions.top == labels[:, None]
    return {
        "acc1": hits[:, 0].double().mean().item(),
        "acc5": hits.any(dim=1).double().mean().item() if num_classes >= TOP else None,
        "mean_per_class_recall": per_class_recall(predictions.best, labels).mean().item(),
    }


def per_class_recall(best: Tensor, labels: Tensor) -> Tensor:
    """Share of each class's pictures that were taken for it, fp64, of the classes in `labels` only.

    (A class without a picture has no recall; scikit-learn's balanced accuracy leaves it out too.)
    """
    classes, position = labels.unique(return_inverse=True)
    right = torch.zeros(len(classes), dtype=torch.float64)
    right.index_add_(0, position, (best == labels).double())
    return right / position.bincount(minlength=len(classes))


def macro_f1(best: Tensor, labels: Tensor) -> float:
    """Mean over the classes in `labels` of 2·TP / (2·TP + FP + FN)."""
    classes = labels.unique()
    is_true, is_best = labels[:, None] == classes, best[:, None] == classes  # (N, classes)
    both = (is_true & is_best).sum(dim=0).double()
    return (2 * both / (is_true.sum(dim=0) + is_best.sum(dim=0))).mean().item()


def mean_average_precision(
    features: Tensor,  # (N, D), unit norm
    classifier: Tensor,  # (D, classes)
    targets: Tensor,  # bool (N, classes): several classes a picture
) -> float:
    """Mean over classes of the precision at each right picture, in the order of their scores."""
    scores = (features.to(classifier.device) @ classifier).cpu()
    order = scores.argsort(dim=0, descending=True, stable=True)
    right = targets.gather(0, order).double()
    precision = right.cumsum(dim=0) / torch.arange(1, len(right) + 1)[:, None]
    per_class = (precision * right).sum(dim=0) / right.sum(dim=0).clamp_min(1)
    return per_class.mean().item()
