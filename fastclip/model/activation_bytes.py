"""What a forward pass keeps for backward, in bytes, from shapes alone.

In a block over n rows of width D, MLP width M = ratio * D, h heads, with s bytes a number of the
residual stream and p of a matrix product's operands and results (under autocast p is 2, s is 2 for
images and 4 for texts):

    kept for backward                              bytes            none  pointwise  full
    block's input                                  s n D              x       x       x
    its statistics and norm                        8 n + p n D        x
    queries, keys, values                          3 p n D            x       x
    attention: result, log-sum-exps                p n D + 4 n h      x       x
    attention by a mask: torch's copy of it        p * its size       x       x
    stream between attention and MLP               s n D              x       x
    its statistics and norm                        8 n + p n D        x
    MLP: before the activation                     p n M              x       x
    MLP: after it (QuickGELU: its sigmoid too)     p n M (2 p n M)    x
    LayerScale: its two inputs                     2 p n D            x       x
    where norms copy a narrower stream to fp32     2 (4 - s) n D      x
    autocast's casts of weights                    p (4 D^2 + 2 D M)  x   p D^2 only

so 16, 10 and 1 times p n D where s = p and M = 4 D. The last block, where it computes b rows only, has
its second half over b rows, keys and values over n and queries over b. Parameters, the batch itself
and what only lives within an operation are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fastclip.model.block import Transformer
from fastclip.model.clip import CLIP, CustomTextCLIP
from fastclip.model.patch_dropout import PatchDropout
from fastclip.model.precision import LayerNormFp32
from fastclip.model.recompute import Recompute
from fastclip.model.stem import embed_raw
from fastclip_kernels.self_attention import sdpa, widened

Picking = Literal["view", "copy", "packed"]  # how the pooled rows are had from all rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """Bytes of one number, by where it lives."""

    product: int  # operands and results of matrix products
    weights: int  # weights of matrix products; wider than `product` under autocast
    others: int  # other parameters: norms, embeddings, LayerScale
    norms_copy: bool  # norms take a stream narrower than fp32 as an fp32 copy

    def cast(self, weights: int) -> int:
        """Bytes of the copies that autocast makes of that many weights."""
        return 0 if self.product == self.weights else self.product * weights

    def norm_input(self, stream: int, rows: int, width: int) -> int:
        """Bytes above the stream's own that a norm keeps: two statistics a row, and what its fp32
        copy takes more than the narrower stream, of which it is then kept in place.
        """
        return 8 * rows + (rows * width * (4 - stream) if self.norms_copy else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """One tower's blocks on one batch."""

    numbers: Numbers
    blocks: int  # those that keep anything: from the first with a trained parameter on
    rows: int  # n: tokens of all samples, padding included
    samples: int  # b
    width: int  # D
    hidden: int  # M
    heads: int
    input: int  # bytes of a number of the first block's input
    quick_gelu: bool
    layer_scale: bool
    mask: int  # bytes of the attention mask, which serves all blocks; 0: none
    mask_copy: int  # bytes of each block's copy of it
    last: Picking | None  # of the last block's rows, if it computes no others

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream, once a branch was added to it."""
        branch = max(self.numbers.product, self.numbers.others if self.layer_scale else 0)
        return max(self.input, branch)

    def kept(self, way: Recompute) -> int:
        """By all blocks; what the last one returns is not in it."""
        if not self.blocks:
            return 0
        total = (self.blocks - 1) * self.block(way)
        total += self.block(way) if self.last is None else self._last_block(way, self.last)
        if way == "full" or not self.mask_copy:
            total += self.mask
        return total + self.rows * self.width * (self.input - self.stream)

    def block(self, way: Recompute) -> int:
        """By one block that computes all rows."""
        rows, width, numbers = self.rows, self.width, self.numbers
        total = self.stream * rows * width
        if way == "full":
            return total
        total += self._attention(rows) + numbers.product * 3 * rows * width
        if way == "none":
            total += numbers.norm_input(self.stream, rows, width)
            total += numbers.product * rows * width + numbers.cast(3 * width**2)
        return total + self._out_projection(rows) + self._mlp(way, rows)

    def _last_block(self, way: Recompute, picking: Picking) -> int:
        rows, samples, width, numbers = self.rows, self.samples, self.width, self.numbers
        total = self.stream * rows * width
        if way == "full":
            return total
        picked = 0 if picking == "view" else self.stream * samples * width
        total += picked + numbers.product * (2 * rows + samples) * width  # keys, values; queries
        if picking == "packed":  # queries in their places among all rows, and what they become
            total += self._attention(rows) + numbers.product * (rows + samples) * width
        else:
            total += self._attention(samples)
            total += numbers.product * rows if picking == "copy" else 0  # rows that each one sees
        if way == "none":
            for count in (rows, samples):
                total += numbers.norm_input(self.stream, count, width)
                total += numbers.product * count * width
            total += numbers.cast(3 * width**2)
        return total + self._out_projection(samples) + self._mlp(way, samples)

    def _attention(self, rows: int) -> int:
        mask = self.mask_copy if rows == self.rows else 0
        return self.numbers.product * rows * self.width + mask + 4 * rows * self.heads

    def _out_projection(self, rows: int) -> int:
        scaled = self.numbers.product * rows * self.width if self.layer_scale else 0
        return self.numbers.cast(self.width**2) + scaled

    def _mlp(self, way: Recompute, rows: int) -> int:
        width, hidden, numbers = self.width, self.hidden, self.numbers
        total = self.stream * rows * width + numbers.product * rows * hidden
        if self.layer_scale:
            total += numbers.product * rows * width
        if way == "none":
            total += numbers.norm_input(self.stream, rows, width)
            total += numbers.product * rows * (width + (1 + self.quick_gelu) * hidden)
            total += numbers.cast(2 * width * hidden)
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationBytes:
    """Both towers on one batch."""

    stacks: tuple[Stack, ...]
    around: int  # before the first block, from the last one on, and the features; in every way

    def kept(self, way: Recompute) -> int:
        """Alive at the end of the forward pass."""
        return self.around + sum(stack.kept(way) for stack in self.stacks)

    @property
    def largest_block(self) -> int:
        """Of the block that keeps most, with nothing recomputed."""
        return max(stack.block("none") for stack in self.stacks)


def activation_bytes(
    model: CLIP | CustomTextCLIP,
    product: torch.dtype,  # that of matrix products, by autocast or by the weights
    device: torch.device,
    *,
    samples: int,
    text_tokens: int,  # tokens of a batch's captions, padding included
    packed: bool,
    pictures_are_bytes: bool = True,  # else floats, already normalised
) -> ActivationBytes:
    """The account of one forward pass of `model`, as it is set up, on a batch."""
    weights = model.visual.conv1.weight.element_size()
    autocast = product.itemsize != weights
    norm = model.visual.ln_post
    numbers = Numbers(
        product=product.itemsize,
        weights=weights,
        others=norm.weight.element_size(),
        # autocast computes a norm in fp32 on a GPU, and on a CPU as it comes
        norms_copy=isinstance(norm, LayerNormFp32) or (autocast and device.type != "cpu"),
    )
    images, around_images = _image_tower(model, numbers, samples, pictures_are_bytes)
    texts, around_texts = _text_tower(model, numbers, samples, text_tokens, packed)
    return ActivationBytes(stacks=(images, texts), around=around_images + around_texts)


def _image_tower(
    model: CLIP | CustomTextCLIP, numbers: Numbers, samples: int, pictures_are_bytes: bool
) -> tuple[Stack, int]:
    visual, config = model.visual, model.config.vision_cfg
    height, width = visual.image_size
    patches = visual.grid_size[0] * visual.grid_size[1]
    dropout = visual.patch_dropout
    chosen = dropout.left_of(patches) if isinstance(dropout, PatchDropout) else patches
    rows, dim = samples * (1 + chosen), config.width
    trained = _trained_blocks(visual.transformer)
    stack = Stack(
        numbers=numbers,
        blocks=trained,
        rows=rows,
        samples=samples,
        width=dim,
        hidden=int(dim * config.mlp_ratio),
        heads=config.heads,
        input=numbers.product,
        quick_gelu=model.config.quick_gelu,
        layer_scale=config.ls_init_value is not None,
        mask=0,
        mask_copy=0,
        last="view" if visual.transformer.prune_last_block else None,
    )
    around = 0
    # then the batch's own bytes are all that it keeps
    fused = visual.embed is embed_raw and pictures_are_bytes
    if visual.conv1.weight.requires_grad and not fused:
        around += numbers.product * samples * 3 * height * width
        around += numbers.cast(visual.conv1.weight.numel())
    if visual.conv1.weight.requires_grad or _is_trained(visual.ln_pre):
        if isinstance(dropout, PatchDropout):  # the places that it keeps, and what it drops from
            around += 8 * samples * chosen
            around += 0 if fused else numbers.product * samples * (1 + patches) * dim
        if not config.no_ln_pre:
            around += numbers.product * rows * dim + numbers.norm_input(numbers.product, rows, dim)
    if trained or _is_trained(visual.ln_post) or visual.proj.requires_grad:
        pools_late = config.pool_type == "avg" and config.final_ln_after_pool
        rows_read = samples if config.pools_one_row or pools_late else rows
        whole = config.pools_one_row and stack.last is None  # the row is a view of all rows
        around += _end(stack, rows if whole else rows_read, rows_read, visual.output_dim)
    return stack, around


def _text_tower(
    model: CLIP | CustomTextCLIP, numbers: Numbers, samples: int, tokens: int, packed: bool
) -> tuple[Stack, int]:
    parts, config = model.text_parts, model.config.text_cfg
    transformer = parts.transformer
    trained = _trained_blocks(transformer)
    picking: Picking = "copy"
    if packed:
        picking = "packed"
    elif config.pool_type in ("first", "last"):
        picking = "view"
    mask = tokens * config.context_length if packed else 0
    by_bytes = transformer.packed_attention is sdpa.masked  # a byte each, widened in every call
    by_floats = transformer.packed_attention is widened.masked
    stack = Stack(
        numbers=numbers,
        blocks=trained,
        rows=tokens,
        samples=samples,
        width=config.width,
        hidden=int(config.width * config.mlp_ratio),
        heads=config.heads,
        input=numbers.weights,
        quick_gelu=model.config.quick_gelu,
        layer_scale=config.ls_init_value is not None,
        mask=mask * (1 if by_bytes else 4 if by_floats else 0),
        mask_copy=mask * numbers.product if by_bytes else 0,
        last=picking if transformer.prune_last_block else None,
    )
    if not (trained or _is_trained(parts.ln_final)):
        return stack, 0
    rows_read = samples if config.pools_one_row else tokens
    whole = picking == "view" and stack.last is None
    output = model.config.embed_dim if config.proj_type == "linear" else config.width
    return stack, _end(stack, tokens if whole else rows_read, rows_read, output)


def _end(stack: Stack, rows_held: int, rows: int, output: int) -> int:
    """The last norm over `rows` of the `rows_held` that are alive, the projection, and unit-norm
    features beside those before.
    """
    numbers, width = stack.numbers, stack.width
    norm = stack.stream * rows_held * width + numbers.norm_input(stack.stream, rows, width)
    projection = numbers.product * stack.samples * width + numbers.cast(width * output)
    return norm + projection + 2 * numbers.product * stack.samples * (output + 1)


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _trained_blocks(transformer: Transformer) -> int:
    """Blocks from the first one on that has a parameter to train: those before it keep nothing."""
    blocks = transformer.blocks
    first = next((i for i, block in enumerate(blocks) if _is_trained(block)), len(blocks))
    return len(blocks) - first
