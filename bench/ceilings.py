"""What a device reaches at best, measured, and the work that a step needs at least: utilisation is made of both."""

from __future__ import annotations

import torch

from bench.paired import Timing, alternate
from fastclip.model.model_config import TextConfig, VisionConfig, load_config
from fastclip_kernels import onednn


def gemm_shapes(model: str, batch_size: int, tokens: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of the products of one block of each tower, forward."""
    config = load_config(model)
    vision, text = config.vision_cfg, config.text_cfg
    height, width = vision.image_size_pair
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    found = []
    for rows, wide, ratio_ in (
        (batch_size * (patches + 1), vision.width, vision.mlp_ratio),
        (tokens, text.width, text.mlp_ratio),
    ):
        hidden = int(wide * ratio_)
        found += [(rows, wide, n) for n in (3 * wide, wide, hidden)] + [(rows, hidden, wide)]
    return found


def gemm_rate(
    shapes: list[tuple[int, int, int]], device: torch.device, dtype: torch.dtype
) -> float:
    """FLOP/s of the fastest GEMM that torch has over products of those shapes, one after the other."""
    operands = [
        (
            torch.randn(m, k, device=device, dtype=dtype),
            torch.randn(k, n, device=device, dtype=dtype),
        )
        for m, k, n in shapes
    ]

    def multiply() -> None:
        for a, b in operands:
            onednn.product(a, b)

    timing = alternate({"gemms": multiply}, device, rounds=9)["gemms"]
    assert isinstance(timing, Timing), timing
    return sum(2 * m * k * n for m, k, n in shapes) / timing.median


def copy_rate(device: torch.device) -> float:
    """Bytes/s read and written by a copy of tensors that no cache holds."""
    count = (1 << 28) if device.type == "cuda" else (1 << 25)  # floats: 1 GiB, 128 MiB
    source, target = (torch.zeros(count, device=device) for _ in range(2))
    timing = alternate({"copy": lambda: target.copy_(source)}, device, rounds=9)["copy"]
    assert isinstance(timing, Timing), timing
    return 2 * 4 * count / timing.median


def useful_flops(model: str, mean_tokens: float) -> float:
    """Of one sample, forward and backward: products of its own tokens, the last block's one row, no recomputation."""
    return image_flops(model) + text_flops(model, mean_tokens)


def image_flops(model: str) -> float:
    """The image tower's part of `useful_flops`."""
    config = load_config(model)
    vision = config.vision_cfg
    height, width = vision.image_size_pair
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    embedding = 2.0 * patches * 3 * vision.patch_size**2 * vision.width  # pixels get no gradient
    one_row = vision.pools_one_row
    return 2 * embedding + 3 * _forward(vision, patches + 1, one_row, config.embed_dim)


def text_flops(model: str, mean_tokens: float) -> float:
    """The text tower's part of `useful_flops`."""
    config = load_config(model)
    text = config.text_cfg
    return 3 * _forward(text, mean_tokens, text.pools_one_row, config.embed_dim)


def _forward(tower: TextConfig | VisionConfig, tokens: float, one_row: bool, out: int) -> float:
    w, hidden = tower.width, int(tower.width * tower.mlp_ratio)
    rows = 1.0 if one_row else tokens
    blocks = (tower.layers - 1) * 2 * tokens * (4 * w * w + 2 * w * hidden + 2 * tokens * w)
    last = 2 * (tokens * 2 * w * w + rows * (2 * w * w + 2 * w * hidden + 2 * tokens * w))
    return blocks + last + 2 * out * w
