"""`fastclip.zero_shot` gives the probabilities that one computes by hand with open_clip."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

import fastclip
from fastclip.errors import DataError, InputMissing, UserError
from tests.export.exported import config, pictures, reference_model

LABELS = ["cat", "Map of Poland", "naïve café"]
TEMPLATES = ["a photo of a {}.", "art of {}", "{}!"]


@pytest.fixture
def models(tmp_path):
    torch.manual_seed(random.randrange(2**32))
    reference = reference_model(tmp_path / "model", config(init_logit_bias=-3.0), {})
    torch.save(reference.state_dict(), tmp_path / "model/open_clip_pytorch_model.bin")
    name = f"local-dir:{tmp_path / 'model'}"
    ours, _, _ = fastclip.create_model_and_transforms(name)
    _, _, preprocess = open_clip.create_model_and_transforms(name)
    return reference, preprocess, ours, fastclip.get_tokenizer(name)


@torch.no_grad()
def by_hand(reference, images, tokenizer) -> torch.Tensor:
    classes = []
    for label in LABELS:
        sentences = tokenizer([template.replace("{}", label) for template in TEMPLATES])
        mean = F.normalize(reference.encode_text(sentences), dim=-1).mean(dim=0)
        classes.append(mean / mean.norm())
    features = F.normalize(reference.encode_image(images), dim=-1)
    logits = reference.logit_scale.exp() * features @ torch.stack(classes).T + reference.logit_bias
    return logits.softmax(dim=-1)


def test_paths_pictures_and_tensors(models, tmp_path):
    reference, preprocess, ours, tokenizer = models
    made = pictures(np.random.default_rng(random.randrange(2**32)))
    paths = [tmp_path / f"{i}.png" for i in range(len(made))]
    for picture, path in zip(made, paths, strict=True):
        picture.save(path)
    floats = torch.stack([preprocess(picture) for picture in made])
    expected = by_hand(reference, floats, tokenizer)
    assert expected.std() > 1e-3
    ours.train()
    for images in (made, paths, [str(path) for path in paths], floats):
        found = fastclip.zero_shot(
            images, LABELS, model=ours, tokenizer=tokenizer, templates=TEMPLATES, batch_size=2
        )
        assert (found - expected).abs().max() <= 1e-5
    assert ours.training
    one = fastclip.zero_shot(paths[1], LABELS, model=ours, tokenizer=tokenizer, templates=TEMPLATES)
    assert (one - expected[1:2]).abs().max() <= 1e-5


def test_bad_use(models, tmp_path):
    _, _, ours, tokenizer = models
    (tmp_path / "bad.jpg").write_bytes(b"no picture")

    def ask(images, labels=LABELS, **options):
        fastclip.zero_shot(images, labels, model=ours, tokenizer=tokenizer, **options)

    with pytest.raises(DataError, match=r"bad\.jpg"):
        ask([tmp_path / "bad.jpg"])
    with pytest.raises(InputMissing, match=r"none\.jpg"):
        ask([tmp_path / "none.jpg"])
    with pytest.raises(UserError, match="labels"):
        ask([], labels=[])
    with pytest.raises(UserError, match="labels"):
        ask([], labels="cat")
    with pytest.raises(UserError, match="templates"):
        ask([], templates=["a photo"])
