"""The fused patch embedding gives the image tower the tokens, and its parameters the gradients, of the other."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from fastclip.config.images import PreprocessConfig
from fastclip.model import stem
from fastclip.model.factory import create_model
from tests.model.model_pairs import TINY, pictures, tiny, tiny_pair

# One of each kind of image tower, and of each patch size.
NAMES = ["ViT-B-32-256", "ViT-B-16-plus-240", "ViT-M-16-alt", "ViT-L-14-CLIPA", "ViT-H-14", "ViT-e-14"]  # fmt: skip


def reduced(name: str) -> dict[str, Any]:
    """The model with its own patches, but few of them, two layers and two heads."""
    raw = open_clip.get_model_config(name)
    vision = raw["vision_cfg"]
    patch = vision["patch_size"]
    vision |= {"layers": 2, "width": 2 * vision.get("head_width", 64)}
    # pictures of another height than width, with pixels beyond the last whole patch
    vision["image_size"] = (2 * patch + 3, 3 * patch)
    raw["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2, "vocab_size": 97}
    raw["embed_dim"] = 40
    return raw


CASES = {
    **{name: reduced(name) for name in NAMES},
    "patch dropout": tiny(vision={"patch_dropout": 0.4}),
    "no norm, all tokens": tiny(vision={"no_ln_pre": True, "pool_type": "none"}),
    "other mean and std": tiny(),
}


def _model(raw: dict[str, Any], seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    return create_model("ViT-B-32", **options, **copy.deepcopy(raw))


def _pixels(model: Any, seed: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (batch, *model.visual.image_size, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _results(
    model: Any, images: Tensor, seed: int, autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Features, and the gradient of every parameter of the image tower that has one."""
    model.zero_grad()
    model.set_patch_dropout_seed(seed)
    with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
        features = model.encode_image(images)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
    if features.requires_grad:
        (features.double() * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.visual.named_parameters() if p.grad is not None}
    return {"features": features.detach(), **gradients}


def _apart(ours: Tensor, wanted: Tensor) -> float:
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm().clamp(1e-9))


def _compare(model: Any, seed: int, tolerance: float) -> None:
    images = _pixels(model, seed)
    off = _results(model, images, seed)
    assert model.fuse_patch_embed()
    on = _results(model, images, seed)
    assert on.keys() == off.keys()
    for what, wanted in off.items():
        assert _apart(on[what], wanted) <= tolerance, what


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_are_the_same(case, dtype, tolerance, seed):
    """In float64 too only up to float32: the other path normalises in that."""
    model = _model(CASES[case], seed).to(dtype)
    if case == "other mean and std":
        config = PreprocessConfig(
            size=model.visual.image_size, mean=(0.2, 0.5, 0.9), std=(0.3, 0.1, 1.7)
        )
        model.visual.set_preprocess_cfg(config)
    _compare(model, seed, tolerance)


@pytest.mark.parametrize(
    "how", ["checkpointed", "locked", "half locked", "stem alone", "evaluated", "biased"]
)
def test_with_what_else_a_run_may_ask_for(how, seed):
    model = _model(CASES["patch dropout"], seed)
    if how == "checkpointed":
        model.set_grad_checkpointing()
    elif how == "locked":
        model.lock_image_tower()
    elif how == "half locked":
        model.lock_image_tower(2)
    elif how == "stem alone":
        model.requires_grad_(False)
        model.visual.positional_embedding.requires_grad_()
    elif how == "biased":
        model.visual.conv1.bias = torch.nn.Parameter(torch.randn(96))
    model.train(how != "evaluated")
    _compare(model, seed, 1e-5)


def test_patches_are_left_out_as_before(seed):
    """The same draws from torch's own generator, and tokens in the same order."""
    model = _model(CASES["patch dropout"], seed)
    images = _pixels(model, seed)
    tokens = []
    for embed in (stem.embed_normalised, stem.embed_raw):
        torch.manual_seed(seed)
        tokens.append(embed(model.visual, images))
    assert tokens[0].shape[1] < len(model.visual.positional_embedding)
    # tokens are about 1: another order would be off by as much
    torch.testing.assert_close(tokens[1], tokens[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "precision", ["fp32", "amp_bf16", "bf16", "pure_bf16", "fp16", "pure_fp16"]
)
def test_tokens_of_each_precision_are_no_worse(precision, seed):
    """Against float64; of the same dtype as before, and so are the gradients."""
    model = _model(tiny(vision={"width": 192}), seed, precision=precision)
    with torch.no_grad():
        truth = stem.embed_normalised(copy.deepcopy(model).double().visual, _pixels(model, seed))
    autocast = torch.bfloat16 if precision == "amp_bf16" else None
    found = []
    for embed in (stem.embed_normalised, stem.embed_raw):
        model.zero_grad()
        with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
            tokens = embed(model.visual, _pixels(model, seed))
        tokens.sum().backward()
        gradients = [p.grad.dtype for p in model.visual.parameters() if p.grad is not None]
        found.append((tokens.dtype, gradients, _apart(tokens.detach(), truth)))
    (dtype, gradients, off), (dtype_on, gradients_on, on) = found
    assert (dtype_on, gradients_on) == (dtype, gradients)
    assert on <= (1 if precision == "fp32" else 0.95) * off


def test_normalised_pictures_take_the_references_path(seed):
    reference, model = tiny_pair(None, seed)
    images = pictures(model, 3, seed)
    off = _results(model, images, seed)
    model.fuse_patch_embed()
    on = _results(model, images, seed)
    assert all(torch.equal(on[what], value) for what, value in off.items())
    torch.testing.assert_close(on["features"], reference.encode_image(images))


def test_a_locked_tower_keeps_nothing_for_backward(seed):
    model = _model(tiny(), seed)
    model.lock_image_tower()
    model.fuse_patch_embed()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        features = model.encode_image(_pixels(model, seed))
    assert not features.requires_grad
    assert not saved


def test_names_copies_and_compilation(seed):
    model = _model(tiny(vision={"layers": 1}), seed)
    names = list(model.state_dict())
    model.fuse_patch_embed()
    assert list(model.state_dict()) == names
    images = _pixels(model, seed)
    wanted = model.visual(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.visual.embed is stem.embed_raw
        assert torch.equal(twin.visual(images), wanted)
    compiled = torch.compile(model.visual, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_pictures_that_do_not_fit_are_said(fused):
    model = create_model("ViT-B-32", **copy.deepcopy(TINY))
    if fused:
        model.fuse_patch_embed()
    with pytest.raises(ValueError, match=r"must be \(64, 64\) pixels .* got \(64, 80\)"):
        model.encode_image(torch.zeros(2, 64, 80, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\), got \(2, 3, 64, 64\)"):
        model.encode_image(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("wrong", ["mean", "std", "kept", "class_token"])
def test_planted_error_is_noticed(wrong, seed, monkeypatch):
    model = _model(CASES["patch dropout"], seed)
    right = stem.patch_embed

    def planted(
        pixels: Tensor, weight: Tensor, class_token: Tensor, *rest: Any, **given: Any
    ) -> Any:
        if wrong == "class_token":
            class_token = -class_token
        else:
            given[wrong] = given[wrong].roll(1, -1 if wrong != "kept" else 0)
        return right(pixels, weight, class_token, *rest, **given)

    monkeypatch.setattr(stem, "patch_embed", planted)
    with pytest.raises(AssertionError):
        _compare(model, seed, 1e-5)
