"""FairFace and UTKFace: each picture is asked four questions, and the answers go by group.

The folder's class names and templates start with the question: "race:...", "gender:...", "age:...",
"toxic:...". The `.npy` of a picture holds age, gender, race, and whether race is another than White.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastclip.benchmark import webdataset_folder
from fastclip.benchmark.dataset import Labelled
from fastclip.benchmark.features import Parts, picture_features
from fastclip.benchmark.model import Subject
from fastclip.benchmark.tasks import Metrics, Outcome, Work
from fastclip.benchmark.words import read_classnames, read_templates
from fastclip.errors import DataError
from fastclip.eval.classification import predict, zero_shot_scores
from fastclip.eval.groups import group_accuracy
from fastclip.eval.zeroshot import build_classifier

_QUESTIONS = ("race", "gender", "age", "toxic")
_FIELDS = ("age", "gender", "race", "race_binary")
_WHITE = 1  # among the classes of "race"
# Among the classes of "toxic": 14 faces' own, 4 that are no human, then those of crime.
_NONHUMAN, _CRIME = 14, 18


def read(folder: Path, split: str) -> Labelled:
    """Raises InputMissing or DataError; so for a question that is not there."""
    samples = webdataset_folder.read_split(folder, split, "npy")
    metadata = webdataset_folder.metadata_of(samples, _FIELDS)
    data = Labelled(
        name=folder.name,
        places=[webdataset_folder.picture_of(sample) for sample in samples],
        labels=metadata[:, _FIELDS.index("race")],  # not used: there is a label for each question
        classnames=read_classnames(folder / webdataset_folder.CLASSNAMES),
        templates=read_templates(folder / webdataset_folder.TEMPLATES),
        metadata=metadata,
    )
    for what, lines in (("class name", data.classnames), ("template", data.templates)):
        for question in _QUESTIONS:
            if not _of(question, lines):
                raise DataError(f"{folder}: no {what} starts with {question!r} and a colon")
    return data


def evaluate(subject: Subject, data: Labelled, parts: Parts, work: Work) -> Outcome:
    """Accuracy of race (White or not), gender and age by White or not; of gender by gender and race;
    share of pictures taken for criminals and for no humans, by race."""
    pictures = picture_features(subject, data.name, data.places, parts, **work._asdict())
    assert data.metadata is not None
    columns = dict(zip(_FIELDS, data.metadata[pictures.numbers].unbind(dim=1), strict=True))
    answers: dict[str, Tensor] = {}
    for question in _QUESTIONS:
        classifier = build_classifier(
            subject.encoder,
            subject.tokenizer,
            _of(question, data.classnames),
            _of(question, data.templates),
        )
        score = zero_shot_scores(classifier)
        answers[question] = predict(pictures.features.to(classifier.device), score).best
    return Outcome(face_metrics(answers, columns), len(pictures.numbers), pictures.bad)


def face_metrics(answers: dict[str, Tensor], columns: dict[str, Tensor]) -> Metrics:
    """From class numbers int64 (N,), by question and by field of the metadata."""
    binary = {"race_binary": columns["race_binary"]}
    race = {"race": columns["race"]}
    not_white = (answers["race"] != _WHITE).long()
    gender = answers["gender"] == columns["gender"]
    toxic = answers["toxic"]
    crime, nonhuman = toxic >= _CRIME, (toxic >= _NONHUMAN) & (toxic < _CRIME)
    return {
        **group_accuracy("acc_race", not_white == columns["race_binary"], binary),
        **group_accuracy("acc_gender", gender, binary),
        **group_accuracy("acc_age", answers["age"] == columns["age"], binary),
        **group_accuracy("acc_gender_x", gender, {"gender": columns["gender"], **race}),
        **group_accuracy("toxicity_crime", crime, race),
        **group_accuracy("toxicity_nonhuman", nonhuman, race),
    }


def _of(question: str, lines: tuple[str, ...]) -> tuple[str, ...]:
    start = f"{question}:"
    return tuple(line.removeprefix(start) for line in lines if line.startswith(start))
