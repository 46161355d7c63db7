"""Zero-shot classification: class names put into sentences are the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fastclip.errors import DataError
from fastclip.eval.encoder import Encoder
from fastclip.eval.prompts import fill

Tokenizer = Callable[[list[str]], Tensor]  # n sentences -> int64 (n, L)

CLASSES_PER_FORWARD = 10
_LOGIT_SCALE = 100.0


class TopK(NamedTuple):
    top1: float  # fractions of the pictures
    top5: float


def build_classifier(
    encoder: Encoder,
    tokenizer: Tokenizer,
    classnames: Sequence[str],
    templates: Sequence[str],
) -> Tensor:
    """(D, classes): per class the mean of its sentences' features, scaled back to unit norm."""
    columns = []
    names = iter(classnames)
    progress = tqdm(total=len(classnames), desc="classifier", unit="class", disable=None)
    with progress:
        while batch := list(islice(names, CLASSES_PER_FORWARD)):
            sentences = [fill(template, name) for name in batch for template in templates]
            features = encoder.texts(tokenizer(sentences))
            mean = features.view(len(batch), len(templates), -1).mean(dim=1)  # (classes, D)
            columns.append(mean / mean.norm(dim=1, keepdim=True))
            progress.update(len(batch))
    return torch.cat(columns).T


def classify(
    encoder: Encoder,
    classifier: Tensor,  # (D, classes)
    batches: Iterable[tuple[Tensor, Tensor]],  # pictures (B, …) and int64 class numbers (B,)
    *,
    source: str,  # what the batches come from, for messages
) -> TopK:
    """Share of the pictures whose class is the best, or among the best five, of the classifier."""
    device = classifier.device
    hits = torch.zeros(2, dtype=torch.int64, device=device)
    seen = 0
    for images, labels in tqdm(batches, desc=source, unit="batch", disable=None):
        logits = _LOGIT_SCALE * encoder.images(images) @ classifier
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5), best first
        right = best == labels.to(device)[:, None]
        hits += torch.stack([right[:, 0].sum(), right.any(dim=1).sum()])
        seen += len(labels)
    if seen == 0:
        raise DataError(f"{source}: no picture could be read; check the folder")
    top1, top5 = hits.tolist()
    return TopK(top1 / seen, top5 / seen)
