"""Brightness, contrast, saturation, hue and grey of a batch, each picture in an order of its own.

torchvision's `ColorJitter` on Pillow pictures is the model: every operation ends in whole numbers
between 0 and 255, contrast is about the picture's own mean grey at that moment, and hue turns in
HSV. (One affine matrix per picture would be cheaper and is wrong wherever a value is clipped
between two operations: brightness 1.3 and then contrast 0.7 of white, for instance.)

Pictures are worked on in groups that share one order, so no operation is computed for a picture
that does not want it and the host never waits: it knows all orders before the pixels exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip.data.batch import Draws
from fastclip.data.draws import UNCHANGED

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's weights for grey
# Bytes of one group's pixels: small enough that the thirty passes over them stay in the cache.
_GROUP_BYTES = {"cpu": 1 << 20, "cuda": 16 << 20}


def change_colors_(images: Tensor, draws: Draws, dtype: torch.dtype | None = None) -> Tensor:
    """Apply the colours of `draws` (on the CPU) to `images`, uint8 (B, H, W, 3), in place.

    Computed in `dtype`; None: fp32 on the CPU, fp16 elsewhere (steps of 1/8 of a level near 255).
    """
    kind = images.device.type
    dtype = dtype or (torch.float32 if kind == "cpu" else torch.float16)
    picture_bytes = images[0].numel() * dtype.itemsize if len(images) else 1
    limit = max(1, _GROUP_BYTES.get(kind, _GROUP_BYTES["cuda"]) // picture_bytes)
    groups = _groups(draws, limit)
    if not groups:
        return images
    rows = torch.tensor([row for _, members in groups for row in members])
    factors = _host_factors(draws)[rows]
    if kind == "cuda":  # pinned, so that the copies below wait for nothing
        rows, factors = rows.pin_memory(), factors.pin_memory()
    rows = rows.to(images.device, non_blocking=True)
    factors = factors.to(images.device, dtype, non_blocking=True)
    start = 0
    for operations, members in groups:
        part = slice(start, start + len(members))
        start = part.stop
        # One picture is a view, several are gathered.
        chosen = images[members[0] : members[0] + 1] if len(members) == 1 else images[rows[part]]
        pixels = chosen.permute(3, 0, 1, 2).to(dtype, memory_format=torch.contiguous_format)
        for operation in operations:
            _OPERATIONS[operation](pixels, factors[part, operation].view(-1, 1, 1))
        changed = torch.stack(pixels.to(torch.uint8).unbind(0), dim=-1)
        if len(members) == 1:
            chosen.copy_(changed)
        else:
            images[rows[part]] = changed
    return images


_HUE, _GRAY = 3, 4  # columns of the host factors; the first four as in `Draws`


def _groups(draws: Draws, limit: int) -> list[tuple[tuple[int, ...], list[int]]]:
    """(operations in their order, rows) of at most `limit` pictures that are treated alike."""
    changed = (draws.factors != torch.tensor(UNCHANGED)).tolist()
    together: dict[tuple[int, ...], list[list[int]]] = {}
    for row, (order, gray) in enumerate(
        zip(draws.order.tolist(), draws.gray.tolist(), strict=True)
    ):
        operations = tuple(i for i in order if changed[row][i]) + ((_GRAY,) if gray else ())
        if operations:
            groups = together.setdefault(operations, [[]])
            if len(groups[-1]) == limit:
                groups.append([])
            groups[-1].append(row)
    return [(operations, rows) for operations, parts in together.items() for rows in parts]


def _host_factors(draws: Draws) -> Tensor:
    """float32 (B, 5): the factors as the operations below take them; the last column is grey's."""
    factors = torch.cat([draws.factors, torch.zeros(len(draws.factors), 1)], dim=1)
    # Pillow keeps hue in 0..255, and the reference turns it by whole steps, rounded towards zero.
    factors[:, _HUE] = (factors[:, _HUE] * 255).trunc()
    return factors


# Each operation takes pixels (3, B, H, W), whole numbers in a floating type, and changes them in
# place; factors are (B, 1, 1). Pillow cuts fractions off, hence `floor`.


def _brightness_(pixels: Tensor, factor: Tensor) -> None:
    pixels.mul_(factor).clamp_(0, 255).floor_()


def _contrast_(pixels: Tensor, factor: Tensor) -> None:
    mean = _gray(pixels).mean((-2, -1), keepdim=True, dtype=torch.float32)
    mean = mean.add_(0.5).floor_().to(pixels.dtype)
    _blend_(pixels, mean, factor)


def _saturation_(pixels: Tensor, factor: Tensor) -> None:
    _blend_(pixels, _gray(pixels), factor)


def _blend_(pixels: Tensor, origin: Tensor, factor: Tensor) -> None:
    """Move away from `origin`, or towards it with a factor below 1."""
    pixels.sub_(origin).mul_(factor).add_(origin).clamp_(0, 255).floor_()


def _gray_(pixels: Tensor, factor: Tensor) -> None:
    pixels.copy_(_gray(pixels))


def _gray(pixels: Tensor) -> Tensor:
    red, green, blue = pixels
    gray: Tensor = red * _LUMA[0]
    return gray.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).add_(0.5).floor_()


def _hue_(pixels: Tensor, steps: Tensor) -> None:
    """Turn the hue by `steps` of Pillow's 0..255 scale; largest and smallest channel are kept."""
    red, green, blue = pixels
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    spread = largest - smallest
    # Hue in sixths of a turn: 0 red, 2 green, 4 blue.
    is_red, is_green = largest == red, largest == green
    hue = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    hue.div_(spread.clamp(min=1))
    zero, two, four = (hue.new_full((), sixths) for sixths in (0.0, 2.0, 4.0))
    hue.add_(torch.where(is_red, zero, torch.where(is_green, two, four)))
    hue.add_(hue < 0, alpha=6)
    # As Pillow stores it, in a byte that overflows at 256 though a full turn is 255.
    hue.mul_(255 / 6).floor_().add_(steps)
    hue.sub_((hue / 256).floor_().mul_(256)).mul_(6 / 255)
    torch.addcmul(smallest, spread, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(smallest, spread, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=green)
    torch.addcmul(smallest, spread, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=blue)
    pixels.round_()


_OPERATIONS = (_brightness_, _contrast_, _saturation_, _hue_, _gray_)
