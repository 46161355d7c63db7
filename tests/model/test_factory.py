"""Flags reach the model as they reach the reference's."""

import math

import open_clip
import pytest
import torch

from fastclip.config.train_config import ModelConfig
from fastclip.errors import EnvironmentProblem, UserError
from fastclip.model import open_clip_adapter
from fastclip.model.block import quick_gelu
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.factory import create_model, create_teacher, create_training_model
from tests.model.model_pairs import TINY, tiny

PREPROCESS_FLAGS = [
    {},
    {"image_mean": (0.1, 0.2, 0.3), "image_interpolation": "bilinear"},
    {"image_std": (0.1, 0.2, 0.3), "image_resize_mode": "longest"},
    {"force_image_size": (48, 80)},
]


@pytest.mark.parametrize("flags", PREPROCESS_FLAGS)
def test_preprocessing(flags):
    ours = create_model("ViT-S-32", **flags)
    reference, _, _ = open_clip.create_model_and_transforms("ViT-S-32", **flags)
    config, wanted = ours.visual.preprocess_cfg, reference.visual.preprocess_cfg
    assert config.size == ours.visual.image_size == tuple(wanted["size"])
    for key in ("mean", "std", "interpolation", "resize_mode", "fill_color"):
        assert getattr(config, key) == wanted[key]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_mean": (0.1, 0.2)}, "1 or 3 numbers, got 2"),
        ({"image_interpolation": "cubic"}, "choose bicubic, bilinear, random"),
        ({"image_resize_mode": "crop"}, "choose shortest, longest, squash"),
        ({"embed_dims": 3}, "not fields of a native ViT model: embed_dims"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(UserError, match=message):
        create_model("ViT-B-32", **{**TINY, **flags})


def test_forced_fields():
    model = create_training_model(
        ModelConfig(
            name="ViT-S-32",
            force_quick_gelu=True,
            force_custom_text=True,
            force_patch_dropout=0.5,
            force_image_size=64,
            force_context_length=20,
        ),
        "fp32",
        "cpu",
        siglip=True,
    )
    assert isinstance(model, CustomTextCLIP)
    assert model.config.quick_gelu
    assert model.visual.transformer.blocks[0].mlp.activation is quick_gelu
    assert model.visual.patch_dropout.share == 0.5
    assert (model.visual.image_size, model.context_length) == ((64, 64), 20)
    assert model.text.positional_embedding.shape[0] == 20
    assert model.logit_scale.item() == pytest.approx(math.log(10))
    assert model.logit_bias.item() == -10
    assert model.output_dict
    assert isinstance(
        create_training_model(ModelConfig(name="ViT-S-32"), "fp32", "cpu", False), CLIP
    )


def test_teacher_sees_the_students_pictures(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(create_model("ViT-S-32-alt").state_dict(), path)
    config = ModelConfig(name="ViT-S-32", image_mean=(0.1, 0.2, 0.3))
    student = create_training_model(config, "fp32", "cpu", siglip=False)
    teacher = create_teacher(
        "ViT-S-32-alt", str(path), config, precision="fp32", device="cpu", student=student
    )
    assert teacher.visual.preprocess_cfg == student.visual.preprocess_cfg
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    small = create_model("ViT-S-32", force_image_size=64)
    with pytest.raises(UserError, match=r"image size \(224, 224\).*\(64, 64\)"):
        create_teacher(
            "ViT-S-32-alt", str(path), config, precision="fp32", device="cpu", student=small
        )
    with pytest.raises(UserError, match="needs both"):
        create_teacher("ViT-S-32-alt", None, config, precision="fp32", device="cpu")


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(open_clip_adapter.optional, "find", lambda name: f"{name} is not installed")
    for name in ("RN50", "hf-hub:org/model"):
        with pytest.raises(EnvironmentProblem, match=r"pip install 'fastclip\[openclip\]'"):
            create_model(name)
    with pytest.raises(UserError, match="nearest names"):
        create_model("RN51")
    create_model("ViT-B-32", **tiny())
