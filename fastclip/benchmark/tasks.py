"""The three tasks: from a data set and a model to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.benchmark.dataset import Captioned, Labelled
from fastclip.benchmark.features import (
    Helper,
    Parts,
    PictureFeatures,
    picture_features,
    text_features,
)
from fastclip.benchmark.model import Subject
from fastclip.errors import DataError
from fastclip.eval.caption_retrieval import caption_retrieval_metrics
from fastclip.eval.classification import (
    Predictions,
    classification_metrics,
    mean_average_precision,
    predict,
    zero_shot_scores,
)
from fastclip.eval.linear_probe import EPOCHS, train_probe
from fastclip.eval.zeroshot import build_classifier

Metrics = dict[str, Any]  # numbers, and None where one is not defined


class Work(NamedTuple):
    """How pictures are gone through."""

    batch_size: int
    workers: int  # loader processes of each device
    others: Sequence[Helper] = ()


class Outcome(NamedTuple):
    metrics: Metrics
    num_samples: int  # that the figures are of
    bad: dict[str, int]  # pictures left out, by cause


class Classified(NamedTuple):
    """A labelled set after zero-shot classification, without the pictures that do not decode."""

    predictions: Predictions
    labels: Tensor
    metadata: Tensor | None
    pictures: PictureFeatures


def zero_shot(subject: Subject, data: Labelled, parts: Parts, work: Work) -> Outcome:
    """`acc1`, `acc5`, `mean_per_class_recall`; `mean_average_precision` for several classes a picture."""
    if data.labels.dtype == torch.bool:
        pictures = _pictures(subject, data, parts, work)
        classifier = classifier_of(subject, data)
        targets = data.labels[pictures.numbers]
        score = mean_average_precision(pictures.features, classifier, targets)
        return Outcome({"mean_average_precision": score}, len(targets), pictures.bad)
    done = classify(subject, data, parts, work)
    metrics = classification_metrics(done.predictions, done.labels, len(data.classnames))
    return Outcome(metrics, len(done.labels), done.pictures.bad)


def classify(subject: Subject, data: Labelled, parts: Parts, work: Work) -> Classified:
    classifier = classifier_of(subject, data)
    pictures = _pictures(subject, data, parts, work)
    metadata = None if data.metadata is None else data.metadata[pictures.numbers]
    score = zero_shot_scores(classifier)
    predictions = predict(pictures.features.to(classifier.device), score)
    return Classified(predictions, data.labels[pictures.numbers], metadata, pictures)


def classifier_of(subject: Subject, data: Labelled) -> Tensor:
    """(D, classes), unit-norm columns."""
    return build_classifier(subject.encoder, subject.tokenizer, data.classnames, data.templates)


def retrieval(subject: Subject, data: Captioned, parts: Parts, work: Work) -> Outcome:
    """Recall at 1, 5 and 10 both ways. Captions of pictures that do not decode are left out too."""
    pictures = picture_features(subject, data.name, data.places, parts, **work._asdict())
    captions = [data.captions[number] for number in pictures.numbers.tolist()]
    owner = torch.tensor([row for row, some in enumerate(captions) for _ in some])
    if not len(owner):
        raise DataError(f"{data.name}: no picture has a caption")
    texts = [text for some in captions for text in some]
    text = text_features(subject, texts, batch_size=work.batch_size)
    metrics: Metrics = dict(
        caption_retrieval_metrics(pictures.features.to(text.device), text, owner)
    )
    return Outcome(metrics, len(captions), _sum(data.left_out, pictures.bad))


def linear_probe(
    subject: Subject,
    train: Labelled,
    test: Labelled,
    train_parts: Parts,
    test_parts: Parts,
    work: Work,
    *,
    seed: int,
) -> Outcome:
    """Top-1, top-5 and mean per class of a probe trained on `train`, on `test`."""
    if train.labels.dtype == torch.bool or test.labels.dtype == torch.bool:
        raise DataError(f"{test.name}: a linear probe wants one class a picture")
    known = _pictures(subject, train, train_parts, work)
    asked = _pictures(subject, test, test_parts, work)
    labels, truth = train.labels[known.numbers], test.labels[asked.numbers]
    probe = train_probe(known.features.to(subject.device), labels, int(labels.max()) + 1, seed=seed)
    with torch.no_grad():
        predictions = predict(asked.features.to(subject.device), probe)
    # The reference has a top-5 where the largest class number is at least 5.
    figures = classification_metrics(predictions, truth, int(truth.max()))
    metrics: Metrics = {f"lp_{name}": value for name, value in figures.items()}
    metrics |= {
        "weight_decay": 0,
        "epochs": EPOCHS,
        "seed": seed,
        "fewshot_k": -1,
        "normalized": True,
    }
    return Outcome(metrics, len(truth), _sum(known.bad, asked.bad))


def _pictures(subject: Subject, data: Labelled, parts: Parts, work: Work) -> PictureFeatures:
    return picture_features(subject, data.name, data.places, parts, **work._asdict())


def _sum(*counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sum((Counter(some) for some in counts), Counter()))
