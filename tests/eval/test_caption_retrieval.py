"""Recall with several captions a picture, against a sort of every row; ties and blocks included."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from fastclip.eval import caption_retrieval
from fastclip.eval.caption_retrieval import caption_retrieval_metrics


def by_sorting(images, texts, owner, k):
    scores = texts @ images.T  # (M, N)
    of_text = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    of_image = scores.T.argsort(dim=1, descending=True, stable=True)[:, :k]
    hit_text = (of_text == owner[:, None]).any(dim=1)
    hit_image = (owner[of_image] == torch.arange(len(images))[:, None]).any(dim=1)
    return hit_text.double().mean().item(), hit_image.double().mean().item()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_recall_is_that_of_a_sort(monkeypatch, ties, block):
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    n, m = 37, 111
    monkeypatch.setattr(caption_retrieval, "BLOCK_SCORES", block * m)
    owner = torch.randint(n, (m,))
    owner[owner == 5] = 6  # a picture without a caption is a miss
    images, texts = torch.randn(n, 8), torch.randn(m, 8)
    texts = texts + images[owner]
    if ties:  # whole numbers: products are exact, and many are equal
        images, texts = images.round(), texts.round()
    else:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    got = caption_retrieval_metrics(images, texts, owner)
    for k in (1, 5, 10):
        of_text, of_image = by_sorting(images, texts, owner, k)
        assert got[f"image_retrieval_recall@{k}"] == pytest.approx(of_text, abs=1e-12)
        assert got[f"text_retrieval_recall@{k}"] == pytest.approx(of_image, abs=1e-12)
    assert 0 < got["text_retrieval_recall@1"] < 1


def test_a_collapsed_model_is_at_chance():
    got = caption_retrieval_metrics(torch.ones(10, 4), torch.ones(30, 4), torch.arange(30) // 3)
    assert got["image_retrieval_recall@1"] == pytest.approx(0.1)
    assert got["text_retrieval_recall@1"] == pytest.approx(0.1)
