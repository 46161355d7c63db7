"""Zero-shot classification asks the same questions as the reference and gets the same answers."""

from __future__ import annotations

import random

import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from open_clip_train import zero_shot
from torch import Tensor
from torch.nn import functional as F

from fastclip.errors import DataError
from fastclip.eval.encoder import PairFeatures
from fastclip.eval.prompts import fill, imagenet_classnames, imagenet_templates
from fastclip.eval.zeroshot import build_classifier, classify


class Lookup:
    """An encoder whose features are a fixed random table."""

    def __init__(self, seed: int, d: int = 12) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(997, d, generator=generator)
        self.sizes: list[int] = []

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        self.sizes.append(len(tokens))
        return F.normalize(self.table[tokens.sum(dim=1) % 997], dim=-1)

    def texts(self, tokens: Tensor) -> Tensor:
        return self.encode_text(tokens)

    def images(self, images: Tensor) -> Tensor:
        return F.normalize(images, dim=-1)

    def pairs(self, images: Tensor, tokens: Tensor) -> PairFeatures:
        raise AssertionError("zero-shot classification takes no pairs")


def spell(sentences: list[str]) -> Tensor:
    rows = [[ord(c) * (i + 1) for i, c in enumerate(s)][:60] for s in sentences]
    return torch.tensor([row + [0] * (60 - len(row)) for row in rows])


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed


def test_words_are_the_reference_s():
    assert list(imagenet_classnames()) == list(IMAGENET_CLASSNAMES)
    sentences = [fill(template, "green {x} mamba") for template in imagenet_templates()]
    assert sentences == [template("green {x} mamba") for template in OPENAI_IMAGENET_TEMPLATES]


@pytest.mark.parametrize("classes", [1, 10, 23])
def test_classifier_is_the_reference_s(seed, classes):
    names, templates = imagenet_classnames()[:classes], imagenet_templates()
    ours, theirs = Lookup(seed), Lookup(seed)
    expected = open_clip.build_zero_shot_classifier(
        theirs, spell, names, templates, num_classes_per_batch=10
    )
    got = build_classifier(ours, spell, names, templates)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert ours.sizes == theirs.sizes  # the same forwards: ten classes each


def test_accuracy_is_the_reference_s(seed, monkeypatch):
    # NumPy 2.4 refuses float() of a one-element array, which the reference's function does.
    monkeypatch.setattr(zero_shot, "float", lambda array: array.item(), raising=False)
    classifier = F.normalize(torch.randn(16, 37), dim=0)
    labels = torch.randint(0, 37, (230,))
    # The classifier's own columns with noise: right often enough for the numbers to mean something.
    pictures = classifier.T[labels] + 0.3 * torch.randn(230, 16)
    logits = 100.0 * F.normalize(pictures, dim=-1) @ classifier
    expected = zero_shot.accuracy(logits, labels, topk=(1, 5))
    got = classify(
        Lookup(seed),
        classifier,
        zip(pictures.split(64), labels.split(64), strict=True),
        source="--imagenet-val",
    )
    assert got == pytest.approx([e / 230 for e in expected])
    assert 0.1 < got.top1 < got.top5 < 1


def test_no_pictures_is_said(seed):
    with pytest.raises(DataError, match="--imagenet-val"):
        classify(Lookup(seed), torch.randn(12, 7), [], source="--imagenet-val")
