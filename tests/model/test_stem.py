"""Raw pixels give the features of pictures normalised the usual way."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from fastclip.model.factory import create_model
from fastclip.model.stem import PixelNormalize
from tests.model.model_pairs import TINY, tiny_pair

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def _pixels(seed, size=(64, 64), batch=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def _usual(pixels, mean, std):
    transform = Compose([ToTensor(), Normalize(mean, std)])
    return torch.stack([transform(Image.fromarray(picture)) for picture in pixels])


def test_bits_are_torchvisions(seed):
    pixels = _pixels(seed)
    got = PixelNormalize(MEAN, STD)(torch.from_numpy(pixels), torch.float32)
    assert torch.equal(got, _usual(pixels, MEAN, STD))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16", "pure_fp16"])
def test_features(precision, seed):
    _, model = tiny_pair(None, seed, precision=precision)
    config = model.visual.preprocess_cfg
    pixels = _pixels(seed)
    low = _usual(pixels, config.mean, config.std).to(model.visual.conv1.weight.dtype)
    with torch.no_grad():
        wanted = model.encode_image(low).float()
        got = model.encode_image(torch.from_numpy(pixels)).float()
    assert (got - wanted).norm() <= 1e-6 * wanted.norm() * (1 if precision == "fp32" else 1e4)


@pytest.mark.parametrize(
    "cast", [lambda m: m.bfloat16(), lambda m: m.to(torch.float16), lambda m: m]
)
def test_constants_stay_fp32_and_out_of_the_state_dict(cast):
    model = cast(create_model("ViT-B-32", image_mean=MEAN, image_std=STD, **TINY))
    assert torch.equal(model.visual.pixels.mean, torch.tensor(MEAN))
    assert torch.equal(model.visual.pixels.std, torch.tensor(STD))
    assert not [key for key in model.state_dict() if "pixels" in key]
    assert model.visual.preprocess_cfg.mean == MEAN


def test_flags_decide_mean_and_std(seed):
    model = create_model("ViT-B-32", image_mean=(0.1,), image_std=(0.5,), **TINY)
    pixels = _pixels(seed)
    usual = _usual(pixels, (0.1,) * 3, (0.5,) * 3)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(torch.from_numpy(pixels)),
            model.encode_image(usual),
            atol=1e-5,
            rtol=1e-5,
        )


def test_wrong_layout_is_said():
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\), got \(2, 3, 64, 64\)"):
        PixelNormalize(MEAN, STD)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.float32)
