"""What each data set of the suite is evaluated by: DataComp's metrics, under DataComp's names.

Definitions: github.com/mlfoundations/datacomp (eval_utils/, commit 4a8df19) and, for groups, macro
F1 and macro recall, github.com/p-lambda/wilds. One thing is the tool's own: region "Other" of FMoW,
which WILDS leaves out and has four pictures, counts there as a region, so that published figures of
exactly 0 are those of models that got all four wrong. It counts here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastclip.benchmark import faces, hf_cache, webdataset_folder
from fastclip.benchmark.dataset import Captioned, Labelled, Riddles
from fastclip.benchmark.features import Parts, picture_features, text_features
from fastclip.benchmark.model import Subject
from fastclip.benchmark.suite_sets import SuiteSet
from fastclip.benchmark.tasks import (
    Classified,
    Metrics,
    Outcome,
    Work,
    classify,
    retrieval,
    zero_shot,
)
from fastclip.eval.association import association_metrics, cue_sentence, jaccard
from fastclip.eval.classification import classification_metrics, macro_f1, per_class_recall
from fastclip.eval.groups import group_accuracy

SPLIT = "test"


class SuiteTask(NamedTuple):
    read: Callable[[Path, SuiteSet], Any]  # --data-root and set -> Labelled, Captioned or Riddles
    run: Callable[[Subject, Any, Parts, Work], Outcome]


def _labelled(*fields: str) -> Callable[[Path, SuiteSet], Labelled]:
    def read(root: Path, of: SuiteSet) -> Labelled:
        return webdataset_folder.read_labelled(root / of.folder, SPLIT, metadata_fields=fields)

    return read


def _captioned(root: Path, of: SuiteSet) -> Captioned:
    """From the cache that the public tool fills; or from a folder in CLIP_benchmark's layout."""
    folder = root / f"wds_{of.key.replace('/', '-')}_test"
    if folder.is_dir():
        return webdataset_folder.read_captioned(folder, SPLIT)
    rows = list(hf_cache.rows(root / of.folder, SPLIT, ("image", "caption")))
    return Captioned(
        name=of.slug,
        places=[row["image"] for row in rows],
        captions=[row["caption"] for row in rows],
    )


def _riddles(root: Path, of: SuiteSet) -> Riddles:
    columns = ("candidates", "candidate_images", "cue", "associations")
    rows = list(hf_cache.rows(root / of.folder, SPLIT, columns))
    ends = np.cumsum([len(row["candidates"]) for row in rows]).tolist()
    return Riddles(
        name=of.slug,
        places=[place for row in rows for place in row["candidate_images"]],
        cues=[row["cue"] for row in rows],
        candidates=[
            range(end - len(row["candidates"]), end) for end, row in zip(ends, rows, strict=True)
        ],
        is_associated=[
            torch.tensor([name in row["associations"] for name in row["candidates"]])
            for row in rows
        ],
    )


def _retrieval(subject: Subject, data: Captioned, parts: Parts, work: Work) -> Outcome:
    done = retrieval(subject, data, parts, work)
    both = (done.metrics["image_retrieval_recall@1"], done.metrics["text_retrieval_recall@1"])
    return done._replace(metrics={**done.metrics, "mean_recall@1": sum(both) / 2})


def _with_groups(
    fields: Sequence[str], more: Callable[[Classified, dict[str, Tensor]], Metrics]
) -> SuiteTask:
    """Zero-shot classification with `more` metrics from the metadata `fields`, by name."""

    def run(subject: Subject, data: Labelled, parts: Parts, work: Work) -> Outcome:
        done = classify(subject, data, parts, work)
        assert done.metadata is not None  # the reader was asked for it
        columns = dict(zip(fields, done.metadata.unbind(dim=1), strict=True))
        metrics: Metrics = dict(
            classification_metrics(done.predictions, done.labels, len(data.classnames))
        )
        return Outcome(metrics | more(done, columns), len(done.labels), done.pictures.bad)

    return SuiteTask(_labelled(*fields), run)


def _right(done: Classified) -> Tensor:
    return done.predictions.best == done.labels


def _by(field: str) -> Callable[[Classified, dict[str, Tensor]], Metrics]:
    return lambda done, columns: dict(group_accuracy("acc", _right(done), {field: columns[field]}))


def _top5_by_income(done: Classified, columns: dict[str, Tensor]) -> Metrics:
    right = (done.predictions.top == done.labels[:, None]).any(dim=1)
    return dict(group_accuracy("acc_top5", right, {"income_ds": columns["income_ds"]}))


def _iwildcam(done: Classified, columns: dict[str, Tensor]) -> Metrics:
    best, labels = done.predictions.best, done.labels
    return {
        "acc_avg": _right(done).double().mean().item(),
        "recall-macro_all": per_class_recall(best, labels).mean().item(),
        "F1-macro_all": macro_f1(best, labels),
    }


def _fmow(done: Classified, columns: dict[str, Tensor]) -> Metrics:
    by_year = group_accuracy("acc", _right(done), {"year": columns["year"]})
    by_region = group_accuracy("acc", _right(done), {"region": columns["region"]})
    worst = {
        "acc_worst_year": by_year.pop("acc_wg"),
        "acc_worst_region": by_region.pop("acc_wg"),
    }
    return {**by_year, **by_region, **worst}


def _winogavil(subject: Subject, data: Riddles, parts: Parts, work: Work) -> Outcome:
    """Jaccard index of each cue; one with a picture that does not decode is left out."""
    pictures = picture_features(subject, data.name, data.places, parts, **work._asdict())
    row = dict(zip(pictures.numbers.tolist(), range(len(pictures.numbers)), strict=True))
    cues = text_features(
        subject, [cue_sentence(cue) for cue in data.cues], batch_size=work.batch_size
    ).cpu()
    scores, sizes = [], []
    for cue, candidates, right in zip(cues, data.candidates, data.is_associated, strict=True):
        if all(number in row for number in candidates):
            features = pictures.features[[row[number] for number in candidates]]
            scores.append(jaccard(features @ cue, right))
            sizes.append(len(candidates))
    return Outcome(association_metrics(scores, sizes), len(scores), pictures.bad)


_TIME = ("year", "month", "day", "hour", "minute", "second")

TASKS: dict[str, SuiteTask] = {
    "zeroshot": SuiteTask(_labelled(), zero_shot),
    "iwildcam": _with_groups(("location", "sequence", *_TIME, "y"), _iwildcam),
    "camelyon17": _with_groups(("hospital", "slide", "y"), _by("slide")),
    "fmow": _with_groups(("region", "year", "y"), _fmow),
    "dollar_street": _with_groups(("income_ds", "income_meta", "region"), _top5_by_income),
    "geode": _with_groups(("region", "country"), _by("region")),
    "faces": SuiteTask(lambda root, of: faces.read(root / of.folder, SPLIT), faces.evaluate),
    "retrieval": SuiteTask(_captioned, _retrieval),
    "winogavil": SuiteTask(_riddles, _winogavil),
}
