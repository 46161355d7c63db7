"""Models that open_clip builds train like ours and stay open_clip's."""

import copy

import numpy as np
import open_clip
import pytest
import torch
from torchvision.transforms.functional import normalize, to_tensor

from fastclip.errors import DataError, EnvironmentProblem
from fastclip.model.factory import create_model

TEXT = {"context_length": 11, "vocab_size": 83, "width": 32, "heads": 2, "layers": 2}
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": TEXT,
}
COCA = {
    "embed_dim": 32,  # the decoder takes both towers' outputs, so all three widths are one
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 64, "patch_size": 16,
        "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
}  # fmt: skip
CASES = {"RN50": RESNET, "coca_ViT-B-32": COCA}


def _pair(name, seed, **options):
    torch.manual_seed(seed)
    reference = open_clip.create_model(
        name, output_dict=True, **options, **copy.deepcopy(CASES[name])
    )
    torch.manual_seed(seed)
    ours = create_model(name, output_dict=True, **options, **copy.deepcopy(CASES[name]))
    return reference, ours


@pytest.mark.parametrize("name", CASES)
def test_same_object_but_for_pixels(name, seed):
    reference, ours = _pair(name, seed)
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in reference.named_parameters()]
    assert type(ours).__name__ == type(reference).__name__
    assert isinstance(ours, type(reference))

    reference.load_state_dict(ours.state_dict())  # CoCa: the reference does not set all its weights
    config = ours.visual.preprocess_cfg
    pixels = np.random.default_rng(seed).integers(0, 256, (3, *config.size, 3), dtype=np.uint8)
    images = torch.stack([normalize(to_tensor(p), config.mean, config.std) for p in pixels])
    text = torch.randint(1, 83, (3, 11), generator=torch.Generator().manual_seed(seed))
    wanted, got = reference(images, text), ours(torch.from_numpy(pixels), text)
    assert list(got) == list(wanted)
    assert ("logits" in got) == ours.writes_captions == name.startswith("coca")
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], atol=1e-5, rtol=1e-5)
    assert (ours.context_length, ours.vocab_size, ours.output_dict) == (11, 83, True)
    copy.deepcopy(ours)


def test_first_weights(seed):
    reference, ours = _pair("RN50", seed)
    wanted = reference.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in ours.state_dict().items())

    reference, ours = _pair("coca_ViT-B-32", seed)
    after = torch.rand(3)
    wanted = reference.state_dict()
    left_unset = "text_decoder.text_projection"  # the reference: whatever the memory held
    for key, value in ours.state_dict().items():
        assert key == left_unset or torch.equal(value, wanted[key]), key
    projection = ours.state_dict()[left_unset]
    assert projection.std().item() == pytest.approx(32**-0.5, rel=0.1)
    again = _pair("coca_ViT-B-32", seed)[1]
    assert torch.equal(again.state_dict()[left_unset], projection)
    torch.manual_seed(seed)
    open_clip.create_model("coca_ViT-B-32", **copy.deepcopy(COCA))
    assert torch.equal(torch.rand(3), after), "later draws are the reference's"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_locking(name, groups, seed):
    reference, ours = _pair(name, seed)
    if name == "RN50":
        reference.lock_text_tower(groups)
    else:
        open_clip.transformer.lock_text_tower(reference, groups)  # CoCa has no method for it
    reference.visual.lock(unlocked_groups=0)
    ours.lock_text_tower(groups)
    ours.lock_image_tower(0)
    wanted = {n: p.requires_grad for n, p in reference.named_parameters()}
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == wanted
    ours.lock_text_tower(groups, freeze_layer_norm=False)
    changed = {n for n, p in ours.named_parameters() if p.requires_grad != wanted[n]}
    assert all(".ln_" in f".{n}" and "visual" not in n for n in changed)
    assert changed or groups == 3


@pytest.mark.parametrize("name", CASES)
def test_weights_from_a_file(name, tmp_path, seed):
    reference, source = _pair(name, seed)
    reference.load_state_dict(source.state_dict())  # CoCa: the reference may hold NaN
    state = {f"module.{k}": v for k, v in reference.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "w.pt")
    ours = create_model(name, str(tmp_path / "w.pt"), **copy.deepcopy(CASES[name]))
    for key, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    torch.save({"logit_scale": torch.ones(())}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other\.pt: does not fit the model"):
        create_model(name, str(tmp_path / "other.pt"), **copy.deepcopy(CASES[name]))


def test_pixels_keep_low_precision(seed):
    _, ours = _pair("RN50", seed, precision="pure_bf16")
    ours.eval()
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert ours.encode_image(pixels).dtype == torch.bfloat16


def test_preprocessing_flags_and_siglip(seed):
    _, ours = _pair("RN50", seed, init_logit_scale=2.0, init_logit_bias=-10.0)
    assert ours.logit_bias.item() == -10
    model = create_model(
        "RN50", image_mean=(0.5,), image_resize_mode="squash", **copy.deepcopy(RESNET)
    )
    config = model.visual.preprocess_cfg
    assert (config.mean, config.resize_mode, config.size) == ((0.5,) * 3, "squash", (64, 64))


def test_draws_follow_the_seed(seed):
    _, ours = _pair("RN50", seed)
    ours.set_patch_dropout_seed(seed)
    first = torch.rand(3)
    ours.set_patch_dropout_seed(seed)
    assert torch.equal(torch.rand(3), first)


def test_what_open_clip_cannot_build_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect to the hub\nand so on")

    monkeypatch.setattr(open_clip, "create_model", offline)
    for name in ("roberta-ViT-B-32", "hf-hub:org/model"):
        with pytest.raises(
            EnvironmentProblem, match="open_clip cannot build it here: We couldn't"
        ) as e:
            create_model(name)
        assert "\n" not in str(e.value)
