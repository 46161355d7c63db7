"""Patches are dropped as the reference drops them, and repeatably."""

import copy

import pytest
import torch
from open_clip.transformer import PatchDropout as ReferencePatchDropout
from scipy import stats

from fastclip.model.patch_dropout import PatchDropout
from tests.model.model_pairs import captions, pictures, tiny, tiny_pair


def _kept(module, batch, patches):
    """Which patches come out, by giving every token its own number."""
    tokens = torch.arange(1.0 + patches).expand(batch, -1)[..., None]
    return module(tokens)[..., 0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("patches", [1, 7, 49])
def test_unseeded_draws_are_the_reference_draws(share, patches, seed):
    torch.manual_seed(seed)
    wanted = _kept(ReferencePatchDropout(share), 5, patches)
    torch.manual_seed(seed)
    assert torch.equal(_kept(PatchDropout(share), 5, patches), wanted)


def test_seeded_draws_keep_every_patch_equally_often(seed):
    dropout = PatchDropout(0.5)
    dropout.seed(seed)
    kept = _kept(dropout, 8000, 9)
    assert kept.shape == (8000, 1 + 4)
    assert (kept[:, 0] == 0).all(), "the class token stays"
    assert all(len(set(row)) == 5 for row in kept.tolist()), "no patch comes twice"
    for column in range(1, 5):  # and in any order
        counts = torch.bincount(kept[:, column].long(), minlength=10)[1:]
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_seed_decides_alone(seed):
    dropout = PatchDropout(0.5)
    dropout.seed(seed)
    first = [_kept(dropout, 16, 25) for _ in range(3)]
    assert not torch.equal(first[0], first[1]), "draws go on"
    torch.manual_seed(seed + 7)
    twin = copy.deepcopy(dropout)
    for again in (dropout, twin):
        again.seed(seed)
        assert all(torch.equal(_kept(again, 16, 25), wanted) for wanted in first)
    dropout.seed(seed + 1)
    assert not torch.equal(_kept(dropout, 16, 25), first[0])


def test_global_generator_is_left_alone_once_seeded(seed):
    dropout = PatchDropout(0.5)
    dropout.seed(seed)
    before = torch.get_rng_state()
    _kept(dropout, 4, 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_the_model(seed):
    reference, ours = tiny_pair(tiny(vision={"patch_dropout": 0.4}), seed)
    plain = tiny_pair(None, seed)[1]
    assert (ours.has_patch_dropout, plain.has_patch_dropout) == (True, False)
    images, text = pictures(ours, 3, seed), captions(ours, 3, seed)
    torch.manual_seed(seed)
    wanted = reference.encode_image(images)
    torch.manual_seed(seed)
    torch.testing.assert_close(ours.encode_image(images), wanted, atol=1e-5, rtol=1e-5)

    ours.set_patch_dropout_seed(seed)
    first = ours(images, text)[0]
    ours.set_patch_dropout_seed(seed)
    assert torch.equal(ours(images, text)[0], first)
    ours.eval()
    plain.eval()
    assert torch.equal(ours.encode_image(images), plain.encode_image(images)), "only in training"
    plain.set_patch_dropout_seed(seed)  # without patch dropout: nothing to seed
