"""Every --precision stores and computes what the reference stores and computes."""

from typing import get_args

import pytest
import torch

from fastclip.config.train_config import Precision
from fastclip.errors import UserError
from fastclip.model.factory import create_model
from fastclip.model.precision import LayerNorm, input_dtype
from tests.model.model_pairs import captions, pictures, tiny, tiny_pair


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_parameter_dtypes(precision, custom_text):
    reference, ours = tiny_pair(
        tiny(vision={"ls_init_value": 0.1}, init_logit_bias=-10.0),
        precision=precision,
        force_custom_text=custom_text,
    )
    wanted = reference.state_dict()
    for name, value in ours.state_dict().items():
        assert value.dtype == wanted[name].dtype, name
        assert torch.equal(value, wanted[name]), name


def _outputs(model, images, text):
    with torch.no_grad():
        return model.encode_image(images).float(), model.encode_text(text).float()


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16", "fp16", "pure_fp16"])
def test_low_precision_features(precision, seed):
    reference, ours = tiny_pair(None, seed, precision=precision)
    exact, _ = tiny_pair(None, seed)
    images, text = pictures(ours, 4, seed), captions(ours, 4, seed)
    low = images.to(input_dtype(precision))
    truth = _outputs(exact, images, text)
    theirs, own = _outputs(reference, low, text), _outputs(ours, low, text)
    for t, r, o in zip(truth, theirs, own, strict=True):
        # the same operations in the same dtypes: rounding may fall differently, but not worse
        assert (o - t).norm() <= 1.5 * (r - t).norm() + 1e-3 * t.norm()
        assert (o - r).norm() <= 2e-2 * r.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_and_gradients_under_autocast(dtype, seed):
    reference, ours = tiny_pair(None, seed)
    images, text = pictures(ours, 4, seed), captions(ours, 4, seed)
    weights = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed))
    features = []
    for model in (reference, ours):
        with torch.autocast("cpu", dtype=dtype):
            image, words = model.encode_image(images), model.encode_text(text)
            (weights * (image + words)).sum().backward()
        features.append((image, words))
    for theirs, own in zip(*features, strict=True):
        assert own.dtype == theirs.dtype
        assert (own - theirs).float().norm() <= 2e-2 * theirs.float().norm()
    wanted = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        if "logit_scale" in name or "in_proj_bias" in name:  # the key third's true gradient is zero
            continue
        error = (parameter.grad - wanted[name].grad).norm() / wanted[name].grad.norm()
        assert error < 5e-2, f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_keeps_the_dtype_of_the_stream(dtype):
    norm = LayerNorm(16)
    with torch.autocast("cpu", dtype=dtype):
        assert norm(torch.randn(3, 16)).dtype == torch.float32
        assert norm(torch.randn(3, 16, dtype=dtype)).dtype == dtype


def test_unknown_precision():
    with pytest.raises(UserError, match="--precision 'float32': choose amp, amp_bf16"):
        create_model("ViT-B-32", precision="float32")
