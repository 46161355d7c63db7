"""open_clip opens an exported folder, and gets the model, tokenizer and preprocessing that were trained."""

from __future__ import annotations

import random

import numpy as np
import open_clip
import pytest
import torch

import fastclip
from tests.export.exported import config, export, pictures, reference_model

TEXTS = ["A photo of a cat!", "naïve “art” &amp; more", "", "word " * 90, "<end_of_text> 1984"]

CASES = {
    "plain": (config(), {}, []),
    "quick_gelu": (config(quick_gelu=True), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}, []),
    "custom_text": (config(custom_text=True, vision={"ls_init_value": 0.2}), {}, []),
    "siglip_bias": (
        config(init_logit_bias=-10.0),
        {"interpolation": "bilinear", "resize_mode": "squash"},
        [],
    ),
    "pooling": (
        config(vision={"pool_type": "avg", "no_ln_pre": True}, text={"pool_type": "last"}),
        {"resize_mode": "longest"},
        [],
    ),
    "forced": (config(), {}, ["--force-quick-gelu", "--image-mean", "0.1", "0.2", "0.3"]),
}


@pytest.mark.parametrize("case", CASES)
def test_open_clip_opens_it(tmp_path, case, capsys):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model_cfg, preprocess_cfg, flags = CASES[case]
    trained = reference_model(tmp_path / "model", model_cfg, preprocess_cfg)
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, tmp_path / "epoch_3.pt")

    name = f"local-dir:{tmp_path / 'model'}"
    words = ["--model", name, "--checkpoint", tmp_path / "epoch_3.pt", "--to", "open_clip", *flags]
    assert export(*words, "--out", tmp_path / "out") == 0
    assert "open_clip opens it" in capsys.readouterr().out

    forced = {}
    if flags:  # the reference built anew with them
        forced = {"force_quick_gelu": True, "image_mean": (0.1, 0.2, 0.3)}
        expected, _, expected_preprocess = open_clip.create_model_and_transforms(
            name, load_weights=False, **forced
        )
        expected.load_state_dict(trained.state_dict())
    else:
        expected = trained
        _, _, expected_preprocess = open_clip.create_model_and_transforms(name, load_weights=False)
    out = f"local-dir:{tmp_path / 'out'}"
    for library in (open_clip, fastclip):
        model, _, preprocess = library.create_model_and_transforms(out)
        images = [preprocess(picture) for picture in pictures(np.random.default_rng(seed))]
        wanted = [expected_preprocess(p) for p in pictures(np.random.default_rng(seed))]
        for a, b in zip(images, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-5
        ids = library.get_tokenizer(out)(TEXTS)
        assert torch.equal(ids, open_clip.get_tokenizer(name)(TEXTS))
        model.eval(), expected.eval()
        with torch.no_grad():
            for a, b in (
                (
                    model.encode_image(torch.stack(images)),
                    expected.encode_image(torch.stack(wanted)),
                ),
                (model.encode_text(ids), expected.encode_text(ids)),
            ):
                assert b.std() > 1e-2
                assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())
        assert torch.equal(model.logit_scale, expected.logit_scale)
        if "init_logit_bias" in model_cfg:
            assert torch.equal(model.logit_bias, expected.logit_bias)


def test_a_model_of_open_clips_own(tmp_path):
    """A ResNet, which our towers do not have: open_clip's configuration and weights go out again."""
    torch.manual_seed(random.randrange(2**32))
    model_cfg = config(
        vision={"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}
    )
    model_cfg["vision_cfg"] = {
        k: v for k, v in model_cfg["vision_cfg"].items() if k in ("layers", "width", "image_size")
    }
    trained = reference_model(tmp_path / "model", model_cfg, {})
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    name = f"local-dir:{tmp_path / 'model'}"
    words = ["--model", name, "--checkpoint", tmp_path / "weights.pt", "--out", tmp_path / "out"]
    assert export(*words, "--to", "open_clip") == 0
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = model.eval().encode_image(images) - trained.encode_image(images)
    assert difference.abs().max() <= 1e-5
