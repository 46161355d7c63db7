"""`import fastclip` gives OpenCLIP's calls, and they give OpenCLIP's results."""

from __future__ import annotations

import copy
import inspect
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models

import fastclip
from fastclip.config.images import AugmentConfig
from fastclip.errors import EnvironmentProblem, UserError

# A ViT of no real model, small, with CLIP's vocabulary; given to both sides as overrides.
SMALL: dict[str, Any] = {
    "embed_dim": 40,
    "vision_cfg": {
        "image_size": 64,
        "layers": 3,
        "width": 96,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 21,
        "vocab_size": 49408,
        "width": 48,
        "heads": 3,
        "layers": 3,
    },
}
TEXTS = ["A photo of a cat", "naïve “art” &amp; more", "", "word " * 90]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Of all shapes and kinds: smooth, because that shows a shift of half a pixel, and noisy."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    made = []
    for height, width in [(64, 64), (97, 61), (40, 130), (300, 211)]:
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(rows / a + columns / 9) for a in (5, 11, 17)], axis=-1)
        noise = rng.normal(0, 20, (height, width, 3))
        pixels = (127 + 90 * waves + noise).clip(0, 255).astype(np.uint8)
        made.append(Image.fromarray(pixels))
    return [*made, made[1].convert("L"), made[2].convert("RGBA")]


def features(model, preprocess, tokenizer, pictures) -> tuple[torch.Tensor, ...]:
    model.eval()
    images = torch.stack([preprocess(picture) for picture in pictures])
    texts = tokenizer(TEXTS)
    with torch.no_grad():
        return (
            model.encode_image(images),
            model.encode_image(images, normalize=True),
            model.encode_text(texts),
            model.encode_text(texts, normalize=True),
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"force_quick_gelu": True, "image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)},
        {"image_interpolation": "bilinear", "image_resize_mode": "squash"},
        {"image_resize_mode": "longest", "force_custom_text": True},
    ],
    ids=["plain", "pixels", "squash", "longest"],
)
def test_the_three_calls_give_the_references_features(tmp_path, pictures, options):
    """Same weights, the same pictures and texts, each side through its own three calls."""
    reference, _, reference_preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32", **options, **copy.deepcopy(SMALL)
    )
    path = tmp_path / "weights.pt"
    torch.save(reference.state_dict(), path)
    ours, _, preprocess = fastclip.create_model_and_transforms(
        "ViT-B-32", pretrained=str(path), **options, **copy.deepcopy(SMALL)
    )
    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=21)
    tokenizer = fastclip.get_tokenizer("ViT-B-32", context_length=21)
    expected = features(reference, reference_preprocess, theirs, pictures)
    assert_close(features(ours, preprocess, tokenizer, pictures), expected)


def assert_close(got, expected) -> None:
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5
        assert b.std() > 1e-2  # features that differ, or the comparison says little


def test_a_folder_made_by_the_reference(tmp_path, pictures):
    """`local-dir:`, with other sizes than those of its weights: positions are resized alike."""
    config = {"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    weights = open_clip.create_model("ViT-B-32", **copy.deepcopy(SMALL)).state_dict()
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    name = f"local-dir:{tmp_path}"
    options = {"force_image_size": 48, "force_context_length": 17}
    reference, _, theirs = open_clip.create_model_and_transforms(name, **options)
    ours, _, preprocess = fastclip.create_model_and_transforms(name, **options)
    assert fastclip.get_tokenizer(name).context_length == 21
    expected = features(
        reference, theirs, open_clip.get_tokenizer(name, context_length=17), pictures
    )
    got = features(ours, preprocess, fastclip.get_tokenizer(name, context_length=17), pictures)
    assert_close(got, expected)


@pytest.mark.parametrize("name", ["create_model", "create_model_and_transforms", "get_tokenizer"])
def test_positional_arguments_are_the_references(name):
    theirs = list(inspect.signature(getattr(open_clip, name)).parameters)
    ours = inspect.signature(getattr(fastclip, name)).parameters.values()
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    if name == "get_tokenizer":
        positional.remove("tokenizer_path")  # ours, after the reference's three
    assert theirs[: len(positional)] == positional


def test_every_named_argument_of_the_reference_is_taken():
    """Spelled out, with the reference's defaults, all at once."""
    signature = inspect.signature(open_clip.create_model_and_transforms)
    defaults = {
        name: p.default for name, p in signature.parameters.items() if p.default is not p.empty
    }
    model, _, _ = fastclip.create_model_and_transforms("ViT-B-32", **defaults, **SMALL)
    assert model.training


def test_same_seed_same_weights():
    torch.manual_seed(5)
    reference = open_clip.create_model("ViT-B-32", **copy.deepcopy(SMALL))
    torch.manual_seed(5)
    ours = fastclip.create_model("ViT-B-32", **copy.deepcopy(SMALL))
    for (name, a), (other, b) in zip(
        reference.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name


def test_preprocess_settings_by_either_name():
    model, _, preprocess = fastclip.create_model_and_transforms(
        "ViT-B-32", force_preprocess_cfg={"mean": (0.1, 0.2, 0.3)}, **copy.deepcopy(SMALL)
    )
    assert model.visual.preprocess_cfg.mean == (0.1, 0.2, 0.3)
    assert preprocess.preprocess == model.visual.preprocess_cfg
    with pytest.raises(UserError, match="'size': choose mean, std"):
        fastclip.create_model("ViT-B-32", force_preprocess_cfg={"size": 3}, **SMALL)


@pytest.mark.parametrize(
    "aug_cfg",
    [
        {"scale": (0.4, 0.7), "gray_scale_prob": 1.0},
        AugmentConfig(scale=(0.4, 0.7), gray_scale_prob=1.0),
        open_clip.AugmentationCfg(scale=(0.4, 0.7), gray_scale_prob=1.0),
    ],
    ids=["dict", "ours", "theirs"],
)
def test_aug_cfg(pictures, aug_cfg):
    _, train, _ = fastclip.create_model_and_transforms("ViT-B-32", aug_cfg=aug_cfg, **SMALL)
    assert train.augment == AugmentConfig(scale=(0.4, 0.7), gray_scale_prob=1.0)
    first, second = train(pictures[3]), train(pictures[3])
    assert first.shape == (3, 64, 64)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (train.preprocess.mean, train.preprocess.std)
    )
    red, green, blue = (first * std + mean).unbind()
    assert torch.allclose(red, green, atol=1e-5)  # grey, always
    assert torch.allclose(red, blue, atol=1e-5)


def test_aug_cfg_defaults_to_the_references():
    _, train, _ = fastclip.create_model_and_transforms("ViT-B-32", **SMALL)
    assert train.augment == AugmentConfig()
    with pytest.raises(UserError, match="no such key"):
        fastclip.create_model_and_transforms("ViT-B-32", aug_cfg={"scales": (1, 1)}, **SMALL)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu", ""])
def test_get_tokenizer(name):
    expected = open_clip.get_tokenizer(name.replace("/", "-"))
    assert torch.equal(fastclip.get_tokenizer(name)(TEXTS), expected(TEXTS))


def test_get_tokenizer_takes_the_models_context_and_the_callers_arguments():
    ours = fastclip.get_tokenizer("ViT-B-32", context_length=9, clean="canonicalize")
    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=9, clean="canonicalize")
    assert ours.context_length == 9
    assert torch.equal(ours(TEXTS), theirs(TEXTS))


def test_a_slash_finds_the_right_tokenizer_too(monkeypatch):
    """The reference silently gives CLIP's tokenizer for any name with a slash (QI-21)."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("ViT-L-14-CLIPA", "ViT-L/14-CLIPA"):
        with pytest.raises(EnvironmentProblem, match=r"bert-base-uncased.*tokenizer_path"):
            fastclip.get_tokenizer(name)


def test_a_local_tokenizer(tmp_path):
    Tokenizer(
        models.WordLevel({"[PAD]": 0, "a": 1, "[UNK]": 2, "[SEP]": 3}, unk_token="[UNK]")
    ).save(str(tmp_path / "tokenizer.json"))
    tokenizer = fastclip.get_tokenizer("ViT-L-14-CLIPA", tokenizer_path=str(tmp_path))
    rows = tokenizer(["a", "b"])
    assert rows.shape == (2, 32)  # the model's own context length
    assert rows[:, 0].tolist() == [1, 2]


def test_mistakes_are_one_line():
    for call in (fastclip.create_model, fastclip.get_tokenizer):
        with pytest.raises(UserError, match=r"ViT-B-31: unknown model; nearest names: .*ViT-B-32"):
            call("ViT-B-31")
    with pytest.raises(UserError, match=r"torch\.compile"):
        fastclip.create_model("ViT-B-32", jit=True)
    with pytest.raises(UserError, match="pretrained_text_path: not supported"):
        fastclip.create_model("ViT-B-32", pretrained_text_path=str(Path("x.pt")))
