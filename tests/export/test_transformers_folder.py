"""transformers opens an exported folder; models that its CLIPModel cannot compute are refused."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
import torch
import transformers
from torch.nn import functional as F

from tests.export.exported import config, export, pictures, reference_model

# left alone by our cleaning, which transformers' tokenizer does not have
TEXTS = ["A photo of a Cat!", "don't  stop, 1984 — naïve café; 日本語!", "", "word " * 90, "!"]

CASES = {
    "gelu": (config(), {}),
    "quick_gelu": (config(quick_gelu=True), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}),
    "custom_text": (config(custom_text=True), {"interpolation": "bilinear"}),
    "siglip_bias": (config(init_logit_bias=-10.0), {"resize_mode": "squash"}),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_it(tmp_path, case, capsys):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model_cfg, preprocess_cfg = CASES[case]
    trained = reference_model(tmp_path / "model", model_cfg, preprocess_cfg)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    name = f"local-dir:{tmp_path / 'model'}"
    words = ["--model", name, "--checkpoint", tmp_path / "weights.pt", "--to", "transformers"]
    assert export(*words, "--out", tmp_path / "out") == 0
    assert "transformers opens it" in capsys.readouterr().out

    model = transformers.CLIPModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    _, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False)
    wanted = torch.stack([preprocess(p) for p in pictures(np.random.default_rng(seed))])
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "out", backend="pil", local_files_only=True
    )
    images = processor(pictures(np.random.default_rng(seed)), return_tensors="pt")["pixel_values"]
    assert (images - wanted).abs().max() <= 1e-5

    ids = open_clip.get_tokenizer(name)(TEXTS)
    theirs = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=ids.shape[1], return_tensors="pt"
    )["input_ids"]
    for ours, row in zip(ids, theirs, strict=True):
        end = ours.argmax() + 1
        assert torch.equal(ours[:end], row[:end])

    with torch.no_grad():
        found = model(input_ids=theirs, pixel_values=images)
        for a, b in (
            (found.image_embeds, F.normalize(trained.encode_image(wanted), dim=-1)),
            (found.text_embeds, F.normalize(trained.encode_text(ids), dim=-1)),
        ):
            assert b.std() > 1e-2
            assert (a - b).abs().max() <= 1e-5
    assert torch.equal(model.logit_scale, trained.logit_scale)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": {"pool_type": "avg"}}, "'avg' pooling of pictures"),
        ({"vision": {"no_ln_pre": True}}, "without its first LayerNorm"),
        ({"vision": {"ls_init_value": 0.1}}, "LayerScale"),
        ({"vision": {"image_size": [32, 48]}}, "not square"),
        ({"text": {"no_causal_mask": True}}, "without a causal mask"),
        ({"text": {"pool_type": "last"}}, "'last' pooling of texts"),
        ({"text": {"proj_type": "none", "width": 24}}, "text projection"),
    ],
)
def test_what_clip_model_cannot_compute_is_refused(tmp_path, capsys, changes, reason):
    trained = reference_model(tmp_path / "model", config(**changes), {})
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    name = f"local-dir:{tmp_path / 'model'}"
    words = ["--model", name, "--checkpoint", tmp_path / "weights.pt", "--to", "transformers"]
    assert export(*words, "--out", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert reason in line
    assert not (tmp_path / "out").exists()
