"""Retrieval metrics are the reference's, in memory that does not grow with the set's square."""

from __future__ import annotations

import random

import pytest
import torch
from open_clip_train.train import get_clip_metrics
from torch import Tensor
from torch.nn import functional as F

from fastclip.eval import retrieval
from fastclip.eval.retrieval import retrieval_metrics, targets_ranked_before


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed


def related_pairs(n: int, d: int, noise: float) -> tuple[Tensor, Tensor]:
    """Pairs alike, but not so alike that every rank is 1; fp64, so that no two scores tie."""
    image = F.normalize(torch.randn(n, d, dtype=torch.float64), dim=-1)
    text = F.normalize(image + noise * torch.randn(n, d, dtype=torch.float64), dim=-1)
    return image, text


@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 4), (17, 5), (128, 32), (501, 24)])
@pytest.mark.parametrize("noise", [0.2, 3.0])
@pytest.mark.parametrize("block", [1, 7, 1 << 10])
def test_same_names_order_and_values_as_the_reference(seed, n, d, noise, block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", block * n)
    image, text = related_pairs(n, d, noise)
    ours = retrieval_metrics(image, text)
    theirs = get_clip_metrics(image, text, torch.tensor(14.3, dtype=torch.float64))
    assert list(ours) == list(theirs)
    assert ours == pytest.approx({k: float(v) for k, v in theirs.items()}, abs=1e-12)
    assert all(type(value) is float for value in ours.values())


def test_equal_scores_rank_by_index(seed):
    n = 40
    # Few distinct rows of small integers: scores tie often, and exactly.
    image = torch.randint(-1, 2, (n, 3)).float()
    text = torch.randint(-1, 2, (n, 3)).float()
    order = torch.argsort(image @ text.T, dim=1, descending=True, stable=True)
    expected = (order == torch.arange(n)[:, None]).int().argmax(dim=1)
    assert targets_ranked_before(image, text).tolist() == expected.tolist()


def test_collapsed_model_comes_out_at_chance():
    n = 200
    same = torch.ones(n, 8)
    metrics = retrieval_metrics(same, same)
    assert metrics["image_to_text_R@1"] == pytest.approx(1 / n)
    assert metrics["text_to_image_R@10"] == pytest.approx(10 / n)
    assert metrics["image_to_text_mean_rank"] == pytest.approx((n + 1) / 2)


def test_memory_is_a_block_of_scores(seed, monkeypatch):
    n, block = 1500, 64
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", block * n)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    image, text = related_pairs(n, 16, 1.0)
    with Watch():
        targets_ranked_before(image, text)
    assert 0 < largest <= block * n
