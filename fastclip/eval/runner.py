"""One evaluation: what is due, in the reference's order, with its metric names and log lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip.config.train_config import EvalConfig
from fastclip.errors import CannotWrite, DataError
from fastclip.eval.encoder import Encoder
from fastclip.eval.prompts import imagenet_classnames, imagenet_templates
from fastclip.eval.retrieval import retrieval_metrics
from fastclip.eval.zeroshot import Tokenizer, build_classifier, classify

_BATCHES_PER_LOG_LINE = 100

Log = Callable[[str], None]


class Batches(Protocol):
    """Batches of two tensors: pictures and token ids, or pictures and class numbers."""

    @property
    def num_samples(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalData:
    """What there is to evaluate on; None for a flag that was not given."""

    val: Batches | None = None  # --val-data: pictures and token ids
    imagenet_val: Batches | None = None  # --imagenet-val: pictures and class numbers
    imagenet_v2: Batches | None = None  # --imagenet-v2


def evaluate(
    encoder: Encoder,
    data: EvalData,
    *,
    epoch: int,  # epochs completed
    final: bool,  # the last epoch of the run, or a run that only evaluates: everything is due
    config: EvalConfig,
    tokenizer: Tokenizer,
    log: Log,
) -> dict[str, float]:
    """Metrics by name, in the reference's order; empty when nothing is due. For rank 0 only.

    The encoder is in evaluation mode already (`ModelEncoder.evaluating`).
    """
    metrics: dict[str, float] = {}
    if _due(config.zeroshot_frequency, epoch, final):
        metrics |= zero_shot(encoder, data, tokenizer=tokenizer, log=log)
    if data.val is not None and _due(config.val_frequency, epoch, final):
        metrics |= validate(encoder, data.val, epoch=epoch, log=log)
    if metrics:
        log(f"Eval Epoch: {epoch} " + "\t".join(f"{k}: {v:.4f}" for k, v in metrics.items()))
    return metrics


def zero_shot(
    encoder: Encoder, data: EvalData, *, tokenizer: Tokenizer, log: Log
) -> dict[str, float]:
    """Top-1 and top-5 on the ImageNet folders that were given, as fractions."""
    sets = [
        (name, flag, batches)
        for name, flag, batches in (
            ("imagenet", "--imagenet-val", data.imagenet_val),
            ("imagenetv2", "--imagenet-v2", data.imagenet_v2),
        )
        if batches is not None
    ]
    if not sets:
        return {}
    log("Starting zero-shot imagenet.")
    log("Building zero-shot classifier")
    classifier = build_classifier(encoder, tokenizer, imagenet_classnames(), imagenet_templates())
    log("Using classifier")
    metrics: dict[str, float] = {}
    for name, flag, batches in sets:
        accuracy = classify(encoder, classifier, batches, source=flag)
        metrics[f"{name}-zeroshot-val-top1"] = accuracy.top1
        metrics[f"{name}-zeroshot-val-top5"] = accuracy.top5
    log("Finished zero-shot imagenet.")
    return metrics


def validate(encoder: Encoder, batches: Batches, *, epoch: int, log: Log) -> dict[str, float]:
    """Retrieval among all pairs, and the mean over samples of the loss within each batch.

    That loss depends on the batch size, and is the softmax loss also of models trained with
    another, as in the reference. Features of all pairs stay on the device: 8·D bytes a pair.
    """
    image_features: list[Tensor] = []
    text_features: list[Tensor] = []
    loss_sum = caption_loss_sum = torch.zeros(())
    seen = 0
    captions = False
    for i, (images, tokens) in enumerate(batches):
        pair = encoder.pairs(images, tokens)
        size = len(tokens)
        image_features.append(pair.image)
        text_features.append(pair.text)
        loss_sum = loss_sum.to(pair.image.device) + size * batch_loss(
            pair.image, pair.text, pair.logit_scale
        )
        if pair.caption_loss is not None:
            captions = True
            caption_loss_sum = caption_loss_sum.to(pair.image.device) + size * pair.caption_loss
        seen += size
        if i % _BATCHES_PER_LOG_LINE == 0:
            loss = loss_sum.item() / seen
            log(f"Eval Epoch: {epoch} [{seen} / {batches.num_samples}]\tClip Loss: {loss:.6f}\t")
            if captions:
                log(f"Generative Loss: {caption_loss_sum.item() / seen:.6f}\t")
    if seen == 0:
        raise DataError("--val-data: no sample could be read; check the shards")
    metrics: dict[str, float] = retrieval_metrics(
        torch.cat(image_features), torch.cat(text_features)
    )
    metrics |= {"clip_val_loss": loss_sum.item() / seen, "epoch": epoch, "num_samples": seen}
    if captions:
        metrics["val_generative_loss"] = caption_loss_sum.item() / seen
    return metrics


def batch_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Softmax loss of B pairs against each other, without logit bias: 0-dim."""
    logits = logit_scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def append_results(checkpoints: Path, metrics: dict[str, float]) -> None:
    """One line of JSON more in `results.jsonl`; raises CannotWrite."""
    path = checkpoints / "results.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
    except OSError as error:
        raise CannotWrite(
            f"{path}: {error.strerror}; free some space or choose another --logs"
        ) from error


def _due(frequency: int, epoch: int, final: bool) -> bool:
    return frequency != 0 and (final or epoch % frequency == 0)
