"""Utilisation: FLOPs counted on shapes equal the formula by hand, and chips are told apart."""

import pytest
import torch

from fastclip.data.packing import PackRule, TextPacker
from fastclip.model.clip import CLIP
from fastclip.model.model_config import parse_config
from fastclip.train.mfu import peak_flops, step_flops_per_sample
from tests.e2e.trajectories import REDUCED


def _tower(tokens: int, width: int, layers: int) -> int:
    """Products of a transformer: q, k, v, projection (4 W²), MLP (8 W²), scores and mixing (2 T W) per token."""
    return 2 * layers * tokens * (12 * width**2 + 2 * tokens * width)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_flops_equal_the_formula(quick_gelu: bool) -> None:
    model = CLIP(parse_config({**REDUCED, "quick_gelu": quick_gelu}, "test"), output_dict=True)
    vision, text = REDUCED["vision_cfg"], REDUCED["text_cfg"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    forward = (
        2 * patches * 3 * vision["patch_size"] ** 2 * vision["width"]
        + _tower(patches + 1, vision["width"], vision["layers"])
        + _tower(text["context_length"], text["width"], text["layers"])
        + 2 * REDUCED["embed_dim"] * (vision["width"] + text["width"])
    )
    texts = torch.empty(1, 77, device="meta", dtype=torch.int64)
    flops = step_flops_per_sample(model, (256, 256), texts)
    assert flops == pytest.approx(3 * forward, rel=1e-3)

    batch, rows = 8, 2
    packed = TextPacker(PackRule(eos_id=None), rows).shapes(batch, 77)
    tower = _tower(77, text["width"], text["layers"])
    wanted = forward - tower + tower * rows / batch
    assert step_flops_per_sample(model, (256, 256), packed) == pytest.approx(3 * wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_the_chip(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), "amp_bf16") == peak
    assert peak_flops(torch.device("cuda", 0), "fp32") is None
    assert peak_flops(torch.device("cpu"), "amp_bf16") is None
