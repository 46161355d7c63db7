"""Figures as one would work them out on paper: loops over samples, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def ranking(scores: Sequence[float]) -> list[int]:
    """Indices, best first; of equal scores the first."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def top_classes(images: Tensor, classifier: Tensor) -> list[list[int]]:
    return [ranking(row) for row in (images @ classifier.T).tolist()]


def classification(tops: list[list[int]], labels: list[int]) -> dict[str, float | None]:
    recalls = [
        mean([top[0] == c for top, label in zip(tops, labels, strict=True) if label == c])
        for c in sorted(set(labels))
    ]
    return {
        "acc1": mean([top[0] == label for top, label in zip(tops, labels, strict=True)]),
        "acc5": mean([label in top[:5] for top, label in zip(tops, labels, strict=True)])
        if len(tops[0]) >= 5
        else None,
        "mean_per_class_recall": mean(recalls),
    }


def f1_macro(best: list[int], labels: list[int]) -> float:
    scores = []
    for c in sorted(set(labels)):
        both = sum(b == c == label for b, label in zip(best, labels, strict=True))
        if both == 0:
            scores.append(0.0)
            continue
        precision, recall = both / best.count(c), both / labels.count(c)
        scores.append(2 * precision * recall / (precision + recall))
    return mean(scores)


def by_group(right: Sequence[bool], group: Sequence[object]) -> dict[object, float]:
    return {g: mean([r for r, of in zip(right, group, strict=True) if of == g]) for g in set(group)}


def recalls(images: Tensor, captions: list[list[Tensor]], k: int) -> tuple[float, float]:
    """(share of captions whose picture is among k, share of pictures with a caption among k)."""
    texts = [(owner, text) for owner, some in enumerate(captions) for text in some]
    to_image = [
        owner in ranking([float(image @ text) for image in images])[:k] for owner, text in texts
    ]
    to_text = []
    for number, image in enumerate(images):
        best = ranking([float(image @ text) for _, text in texts])[:k]
        to_text.append(any(texts[index][0] == number for index in best))
    return mean(to_image), mean(to_text)


def jaccard(scores: Sequence[float], right: set[int]) -> float:
    chosen = set(ranking(scores)[: len(right)])
    return len(chosen & right) / len(chosen | right)
