"""The patch embedding, forward and backward, from pictures that are on the device as each loader leaves them.

Ours reads uint8 pixels. OpenCLIP's tower reads floats that its loader has normalised: that work is not in its time.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.contest import Contest
from bench.correctness import ROUNDING, backward_of, check_forms
from bench.kernels_on_device import MEAN, STD, draw
from bench.rows import OURS, REFERENCE, Work
from fastclip.model.model_config import load_config
from fastclip_kernels import patch_embed
from fastclip_kernels.patch_embed.reference import patch_embed_reference

CHECKED = 8  # pictures


def embed_floats(normalised: Tensor, weight: Tensor, token: Tensor, table: Tensor) -> Tensor:
    """As the reference's `VisionTransformer.forward` begins; (B, 3, H, W) to (B, 1 + P, D)."""
    x = F.conv2d(normalised.to(weight.dtype), weight, stride=weight.shape[-1])
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
    token = token.view(1, 1, -1).expand(x.shape[0], -1, -1)
    return torch.cat([token, x], dim=1) + table


def test_patch_embed(contest: Contest) -> None:
    sizes, device = contest.sizes, contest.device
    vision = load_config(sizes.model).vision_cfg
    (height, width), patch, wide = vision.image_size_pair, vision.patch_size, vision.width
    patches = (height // patch) * (width // patch)
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (sizes.pairs, height, width, 3), dtype=torch.uint8, generator=drawn
    ).to(device)
    mean, std = MEAN.to(device), STD.to(device)
    floats = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    small = 1 / (patch * 3**0.5)
    parameters = {
        "weight": draw(drawn, device, sizes.dtype, wide, 3, patch, patch) * small,
        "class token": draw(drawn, device, sizes.dtype, wide) * small,
        "positions": draw(drawn, device, sizes.dtype, 1 + patches, wide) * small,
    }
    few = min(CHECKED, sizes.pairs)
    bad = check_forms(
        f"patch_embed {patch} {sizes.dtype}",
        {
            OURS: partial(patch_embed, pixels[:few], mean=MEAN, std=STD),
            REFERENCE: partial(embed_floats, floats[:few]),
        },
        partial(patch_embed_reference, pixels[:few], mean=mean, std=std),
        parameters,
        ROUNDING[sizes.dtype],
    )
    pairs, item = sizes.pairs, sizes.dtype.itemsize
    products = 2 * pairs * patches * 3 * patch**2 * wide
    contest.run(
        "patch embedding",
        f"{sizes.model} {pairs} pictures",
        {
            OURS: backward_of(partial(patch_embed, pixels, mean=MEAN, std=STD), parameters),
            REFERENCE: backward_of(partial(embed_floats, floats), parameters),
        },
        # forward, and the weight's gradient; bytes of pixels in each pass, tokens out and in
        Work(pairs, 2 * products, 2 * pixels.numel() + 2 * pairs * (1 + patches) * wide * item),
        missing=bad,
        rounds=sizes.ops,
    )
