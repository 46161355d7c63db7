"""Our towers are the reference's: names, first weights, features, gradients."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from fastclip.model.factory import create_model
from fastclip.model.model_config import load_config, native_models
from tests.model.model_pairs import (
    captions,
    each_encoder,
    filled_pair,
    on_meta,
    pictures,
    tiny,
    tiny_pair,
)

VARIANTS = {
    "plain": tiny(),
    "quick_gelu": tiny(quick_gelu=True),
    "layer_scale": tiny(vision={"ls_init_value": 0.1}, text={"ls_init_value": 0.2}),
    "avg": tiny(vision={"pool_type": "avg"}),
    "avg_then_norm": tiny(
        vision={"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
    ),
    "all_tokens": tiny(vision={"pool_type": "none"}, text={"pool_type": "none"}),
    "last": tiny(text={"pool_type": "last", "no_causal_mask": True}),
    "first": tiny(text={"pool_type": "first", "no_causal_mask": True}),
    "eos": tiny(text={"pool_type": "eos", "eos_id": 2}),
    "no_projection": tiny(text={"proj_type": "none"}),
    "projection_bias": tiny(text={"proj_bias": True}),
    "oblong": tiny(vision={"image_size": [32, 80]}),
    "logits": tiny(init_logit_scale=2.0, init_logit_bias=-3.0, nonscalar_logit_scale=True),
}


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("name", native_models())
def test_names_order_and_shapes(name, custom_text):
    raw = open_clip.get_model_config(name)
    for tower in ("vision_cfg", "text_cfg"):
        raw[tower]["layers"] = min(raw[tower]["layers"], 3)
    reference, ours = on_meta(raw, custom_text)
    for which in ("state_dict", "named_parameters"):
        wanted = [(k, v.shape) for k, v in dict(getattr(reference, which)()).items()]
        assert [(k, v.shape) for k, v in dict(getattr(ours, which)()).items()] == wanted
    assert ours.context_length == reference.context_length
    assert ours.vocab_size == reference.vocab_size
    assert ours.visual.image_size == reference.visual.image_size
    assert ours.no_weight_decay() == reference.no_weight_decay()


@pytest.mark.parametrize("name", native_models())
def test_depth(name):
    config, raw = load_config(name), open_clip.get_model_config(name)
    assert config.vision_cfg.layers == raw["vision_cfg"]["layers"]
    assert config.text_cfg.layers == raw["text_cfg"]["layers"]


def _reduced(name):
    raw = open_clip.get_model_config(name)
    raw["vision_cfg"]["layers"] = raw["text_cfg"]["layers"] = 2
    raw["text_cfg"]["vocab_size"] = 500  # rows of a table: changes no arithmetic, saves gigabytes
    return raw


def _assert_features_agree(name, reference, ours, seed):
    reference.eval()
    ours.eval()
    with torch.no_grad():
        for tower, theirs, own in each_encoder(reference, ours, seed):
            assert theirs.abs().max() > 0.01, f"{name}: {tower} features say nothing"
            error = (F.normalize(theirs, dim=-1) - F.normalize(own, dim=-1)).abs().max().item()
            assert error < 1e-5, f"{name}: {tower} features differ by {error}"


@pytest.mark.parametrize("name", native_models())
def test_features_at_reduced_depth_on_small_pictures(name, seed):
    raw = _reduced(name)
    raw["vision_cfg"]["image_size"] = 4 * raw["vision_cfg"]["patch_size"]
    _assert_features_agree(name, *filled_pair(raw, seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", native_models())
def test_features_at_reduced_depth(name, seed):
    _assert_features_agree(name, *filled_pair(_reduced(name), seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32-256",
        "ViT-B-16-quickgelu",
        "ViT-B-32-plus-256",
        "ViT-S-16-alt",
        "ViT-M-16-alt",
        "ViT-L-14-336",
        "ViT-L-14-CLIPA",
        "ViT-L-14-worldwide",
        "ViT-H-14",
    ],
)
def test_features_at_full_size(name, seed):
    _assert_features_agree(name, *filled_pair(open_clip.get_model_config(name), seed), seed)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_first_weights_features_and_gradients(variant, custom_text, seed):
    reference, ours = tiny_pair(VARIANTS[variant], seed, force_custom_text=custom_text)
    wanted, got = reference.state_dict(), ours.state_dict()
    assert list(got) == list(wanted)
    for key in wanted:
        assert torch.equal(got[key], wanted[key]), f"{key} is not initialised as the reference's"
    assert torch.equal(
        *[torch.rand(3, generator=_after(m, variant, seed, custom_text)) for m in (0, 1)]
    )

    weigh = torch.Generator().manual_seed(seed)
    for tower, theirs, own in each_encoder(reference, ours, seed):
        assert own.shape == theirs.shape
        torch.testing.assert_close(
            own, theirs, atol=1e-5, rtol=1e-5, msg=lambda m, t=tower: f"{t}: {m}"
        )
        weights = torch.randn(theirs.shape, generator=weigh)
        (theirs * weights).sum().backward()
        (own * weights).sum().backward()
    theirs_by_name = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("logit_"):
            continue
        gradient = theirs_by_name[name].grad
        error = (parameter.grad - gradient).norm() / gradient.norm().clamp_min(1e-3)
        assert error < 1e-4, f"{name}: gradient off by {error:.1e} of its norm"


def _after(side, variant, seed, custom_text):
    """torch's generator as construction leaves it: later draws must not shift either."""
    create = (open_clip.create_model, create_model)[side]
    torch.manual_seed(seed)
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in VARIANTS[variant].items()}
    create("ViT-B-32", force_custom_text=custom_text, **raw)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


@pytest.mark.parametrize(
    "name", ["ViT-B-32-256", "ViT-S-16-alt", "ViT-M-16-alt", "ViT-L-14-CLIPA", "ViT-B-16-plus"]
)
def test_first_weights_of_real_configs(name, seed):
    raw = _reduced(name)
    torch.manual_seed(seed)
    wanted = open_clip.CLIP(**raw).state_dict()
    torch.manual_seed(seed)
    got = create_model(name, **_reduced(name)).state_dict()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("bias", [None, -10.0])
@pytest.mark.parametrize("output_dict", [False, True])
def test_forward_conventions(output_dict, bias, seed):
    reference, ours = tiny_pair(tiny(init_logit_bias=bias), seed, output_dict=output_dict)
    images, text = pictures(ours, 2, seed), captions(ours, 2, seed)
    for inputs in ({"image": images, "text": text}, {"image": images}, {"text": text}):
        wanted, got = reference(**inputs), ours(**inputs)
        assert type(got) is type(wanted)
        if output_dict:
            assert list(got) == list(wanted)
            wanted, got = tuple(wanted.values()), tuple(got.values())
        assert len(got) == len(wanted)
        for theirs, own in zip(wanted, got, strict=True):
            assert (own is None) == (theirs is None)
            if own is not None:
                torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
    normalized = ours.encode_image(images, normalize=True).norm(dim=-1)
    torch.testing.assert_close(normalized, torch.ones(2))


@pytest.mark.parametrize("custom_text", [False, True])
def test_recomputing_changes_no_gradient(custom_text, seed):
    _, model = tiny_pair(tiny(vision={"patch_dropout": 0.5}), seed, force_custom_text=custom_text)
    images, text = pictures(model, 3, seed), captions(model, 3, seed)

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.set_patch_dropout_seed(seed)
        image, words, scale = model(images, text)
        (scale * (image * words).sum()).backward()
        return [p.grad.clone() for p in model.parameters()], count

    count = 0

    def counted(*_):
        nonlocal count
        count += 1

    for block in (*model.visual.transformer.blocks,):
        block.mlp.c_fc.register_forward_hook(counted)
    kept, runs = gradients(False)
    again, more_runs = gradients(True)
    assert (runs, more_runs - runs) == (3, 6), "each block is run a second time"
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_shorter_text_reads_the_first_positions(seed):
    _, model = tiny_pair(None, seed)
    text = captions(model, 4, seed)
    text[:, 5:] = 0
    text[:, 5] = 96
    with torch.no_grad():
        whole, cut = model.encode_text(text), model.encode_text(text[:, :6])
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)


def test_wrong_picture_size_is_said(seed):
    _, model = tiny_pair(None, seed)
    with pytest.raises(ValueError, match=r"\(64, 64\) pixels.*\(32, 48\)"):
        model.encode_image(torch.zeros(1, 3, 32, 48))
