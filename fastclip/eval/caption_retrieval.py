"""Retrieval among pictures with several captions each: CLIP_benchmark's recall, without its matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.eval.retrieval import BLOCK_SCORES, RECALL_AT, exact


def caption_retrieval_metrics(
    image_features: Tensor,  # (N, D), unit norm
    text_features: Tensor,  # (M, D), unit norm
    image_of_text: Tensor,  # int64 (M,): whose caption it is
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """`image_retrieval_recall@k`: captions whose picture is among the best k pictures.
    `text_retrieval_recall@k`: pictures that have a caption of theirs among the best k captions.

    Ranks are by falling scalar product, equal scores by index. A picture without a caption counts
    as a miss.
    """
    images, texts = exact(image_features), exact(text_features)
    owner = image_of_text.to(images.device)
    of_text = _pictures_before(images, texts, owner)
    of_image = _captions_before(images, texts, owner)
    metrics: dict[str, float] = {}
    for k in recall_at:
        metrics[f"image_retrieval_recall@{k}"] = (of_text < k).double().mean().item()
        metrics[f"text_retrieval_recall@{k}"] = (of_image < k).double().mean().item()
    return metrics


def _pictures_before(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """How many pictures rank before each caption's own: int64 (M,)."""
    columns = torch.arange(len(images), device=images.device)
    counts = []
    for start, stop in _blocks(len(texts), len(images)):
        scores = texts[start:stop] @ images.T  # (b, N)
        mine = owner[start:stop, None]  # (b, 1)
        own = scores.gather(1, mine)
        counts.append(_ahead(scores, own, columns < mine).sum(dim=1))
    return torch.cat(counts)


def _captions_before(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """How many captions rank before each picture's best one: int64 (N,); M where it has none."""
    columns = torch.arange(len(texts), device=texts.device)
    counts = []
    for start, stop in _blocks(len(images), len(texts)):
        scores = images[start:stop] @ texts.T  # (b, M)
        is_own = owner == torch.arange(start, stop, device=owner.device)[:, None]  # (b, M)
        best = scores.masked_fill(~is_own, -torch.inf).max(dim=1, keepdim=True).values
        at_best = is_own & (scores == best)
        first = torch.where(at_best, columns, len(texts)).min(dim=1, keepdim=True).values
        before = _ahead(scores, best, columns < first).sum(dim=1)
        counts.append(torch.where(is_own.any(dim=1), before, len(texts)))
    return torch.cat(counts)


def _ahead(scores: Tensor, own: Tensor, earlier: Tensor) -> Tensor:
    return (scores > own) | ((scores == own) & earlier)


def _blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    size = max(1, BLOCK_SCORES // max(columns, 1))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
