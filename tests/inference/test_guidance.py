"""The gradient of a similarity to the picture, as guidance of image generation wants it."""

from __future__ import annotations

import random

import pytest
import torch

import fastclip
from tests.export.exported import config

PREPARE = {
    "as made": lambda model: None,
    "as trained": lambda model: (model.fuse_patch_embed(), model.prune_last_block()),
    "checkpointed": lambda model: model.set_grad_checkpointing(),
}


@pytest.fixture
def model():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model = fastclip.create_model("ViT-B-32", **config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double().eval().requires_grad_(False)


def similarity(model, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return (model.encode_image(images, normalize=True) * text).sum()


@pytest.fixture
def text(model):
    with torch.no_grad():
        return model.encode_text(torch.randint(49408, (2, 19)), normalize=True)


@pytest.mark.parametrize("prepare", PREPARE)
def test_gradient_to_normalised_pictures(model, text, prepare):
    """Against differences of the function itself, in fp64, along random directions."""
    PREPARE[prepare](model)
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(similarity(model, images, text), images)
    for _ in range(3):
        direction = torch.randn_like(images)
        step = 1e-5
        with torch.no_grad():
            ahead = similarity(model, images + step * direction, text)
            behind = similarity(model, images - step * direction, text)
        slope = (ahead - behind) / (2 * step)
        assert abs(slope - (gradient * direction).sum()) <= 1e-7 * max(1, abs(slope))
    assert gradient.abs().min() > 0  # every pixel of every patch has its part


@pytest.mark.parametrize("prepare", PREPARE)
def test_bytes_change_the_similarity_as_the_gradient_says(model, text, prepare):
    """Bytes have no gradient of their own: it is that of the normalised picture, over 255 and std."""
    PREPARE[prepare](model)
    mean, std = (torch.tensor(v).double() for v in (model.visual.pixels._values))
    pixels = torch.randint(1, 255, (2, 48, 48, 3), dtype=torch.uint8)
    bright = (pixels.double() / 255).requires_grad_()
    images = ((bright - mean) / std).permute(0, 3, 1, 2)
    value = similarity(model, images, text)
    [gradient] = torch.autograd.grad(value, bright)
    with torch.no_grad():
        # PixelNormalize computes in fp32
        assert abs(similarity(model, pixels, text) - value) <= 1e-6
        change = torch.randint(-1, 2, pixels.shape)
        ahead = similarity(model, (pixels.int() + change).byte(), text)
        behind = similarity(model, (pixels.int() - change).byte(), text)
    predicted = (gradient * change / 255).sum()
    # central differences of one grey level: what is left is of third order
    assert abs((ahead - behind) / 2 - predicted) <= 0.02 * abs(predicted) + 2e-6
