"""Packed captions: the features and gradients of the same captions laid out one a row."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import torch
from torch import Tensor

from fastclip.data.batch import PackedText
from fastclip.data.packing import PackRule, TextPacker
from fastclip_kernels.self_attention.sdpa import SDPA, attend_before
from tests.model.test_last_block import FAMILIES, _model

PACKABLE = [name for name, raw in FAMILIES.items() if _model(raw, 0).packing_config is not None]


@pytest.fixture
def seed() -> int:
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return seed


def captions(config: Any, seed: int) -> Tensor:
    """Dense ids of captions of every kind: empty, of one word, full, cut without room to spare, with
    an end of text inside, and of random lengths.
    """
    generator = torch.Generator().manual_seed(seed)
    length, last = config.context_length, config.vocab_size - 1
    eos = config.eos_id if config.pool_type == "eos" else last
    lengths = [0, 1, length - 2, *torch.randint(0, length - 2, (6,), generator=generator).tolist()]
    ids = torch.zeros(len(lengths) + 1, length, dtype=torch.int64)
    for row, words in enumerate([*lengths, 5]):
        ids[row, 0] = last - 1
        ids[row, 1 : words + 1] = torch.randint(3, last - 1, (words,), generator=generator)
        ids[row, words + 1] = eos
    ids[-1, 3] = eos  # what follows it is never read
    return ids


def packed(config: Any, ids: Tensor, rows: int = 4) -> PackedText:
    rule = PackRule(eos_id=config.eos_id if config.pool_type == "eos" else None)
    return TextPacker(rule, rows)(ids)


def results(model: Any, text: Any, seed: int) -> list[Tensor]:
    """Features, and the gradient of every parameter that has one."""
    model.zero_grad()
    features = model.encode_text(text, normalize=True)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
    (features * weights).sum().backward()
    return [features.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of features, and of all gradients together: the larger relative difference."""
    features = (ours[0] - theirs[0]).norm() / theirs[0].norm()
    flat = [torch.cat([x.flatten() for x in each[1:]]) for each in (ours, theirs)]
    return float(max(features, (flat[0] - flat[1]).norm() / flat[1].norm()))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", PACKABLE)
def test_packed_is_dense(name, pruned, seed):
    model = _model(FAMILIES[name], seed % 1000)
    if pruned:
        model.prune_last_block()
    ids = captions(model.config.text_cfg, seed)
    text = packed(model.config.text_cfg, ids)
    assert apart(results(model, text, seed), results(model, ids, seed)) <= 1e-6


def test_there_is_something_to_pack():
    assert len(PACKABLE) >= 3


def _positions_go_on(text: PackedText) -> PackedText:
    rows, length = text.ids.shape
    return text._replace(positions=torch.arange(length).expand(rows, length).contiguous())


def _ends_of_others(text: PackedText) -> PackedText:
    return text._replace(ends=text.ends.roll(1))


@pytest.mark.parametrize("plant", [_positions_go_on, _ends_of_others])
def test_an_error_planted_in_the_layout_is_seen(plant, seed):
    model = _model(FAMILIES[PACKABLE[0]], 0)
    ids = captions(model.config.text_cfg, seed)
    wrong = plant(packed(model.config.text_cfg, ids))
    assert apart(results(model, wrong, seed), results(model, ids, seed)) > 1e-3


def test_a_mask_that_shows_neighbours_is_seen(seed):
    model = _model(FAMILIES[PACKABLE[0]], 0)
    ids = captions(model.config.text_cfg, seed)
    model.use_attention(SDPA, SDPA._replace(packed=lambda text: attend_before))
    text = packed(model.config.text_cfg, ids)
    assert apart(results(model, text, seed), results(model, ids, seed)) > 1e-3
