"""The types that cross rooms: what a loader worker hands on, and what a training step receives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Draws(NamedTuple):
    """Every random decision about the pictures of one batch, row i for picture i; drawn in `data/draws.py`.

    Applied in this order: crop and resize, the colour operations in `order`, grey, (normalise), erase.
    """

    crop: Tensor  # int32 (B, 4): top, left, height, width, in pixels of the decoded picture
    bilinear: Tensor  # bool (B,): resize with bilinear instead of bicubic interpolation
    factors: Tensor  # float32 (B, 4): brightness, contrast, saturation, hue; (1, 1, 1, 0) changes nothing
    order: Tensor  # int8 (B, 4): a permutation of 0..3, the column of `factors` that is applied first, second, ...
    gray: Tensor  # bool (B,)
    erase: Tensor  # int64 (B,): seed of this picture's random erasing; -1 erases nothing


class EncodedBatch(NamedTuple):
    """What a loader worker hands on when pictures are decoded in the main process: one buffer, no pickled pixels."""

    encoded: Tensor  # uint8 (total,): the B files end to end
    offsets: Tensor  # int64 (B + 1,): picture i is encoded[offsets[i]:offsets[i + 1]]
    draws: Draws
    texts: Tensor  # int64 (B, context_length)
    keys: list[str]  # "shard/key" of each sample, for messages only


class PackedText(NamedTuple):
    """b captions end to end in R rows of L tokens; made in `data/packing.py`.

    A caption lies whole in one row and is cut after its end of text. The unused end of each row, maybe nothing, is a
    segment of its own: b + R segments, none longer than L.
    """

    ids: Tensor  # int64 (R, L)
    positions: Tensor  # int64 (R, L): place of each token in its segment, from 0
    cu_seqlens: (
        Tensor  # int32 (b + R + 1,): where each segment starts in the R * L tokens; then R * L
    )
    ends: Tensor  # int64 (b,): where in the R * L tokens caption i has its end of text
    dense: Tensor | None = None  # int64 (b, L): the same unpacked, where somebody wants that too


class Batch(NamedTuple):
    """One micro-batch of one rank, on the training device.

    `images` is uint8 (B, H, W, 3), raw RGB pixels after augmentation, to be normalised by the model's stem;
    or float32 (B, 3, H, W), already normalised, where an augmentation needs that (`re_prob`).
    """

    images: Tensor
    texts: Tensor | PackedText  # int64 (B, context_length), zero-padded token ids; or packed
