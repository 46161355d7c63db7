"""Attention of both towers, forward and backward: of pictures in full, of captions packed beside captions padded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.captions import DEMO, caption_lengths, stretched
from bench.contest import Contest
from bench.correctness import ROUNDING, backward_of, check_forms
from bench.kernels_on_device import draw
from bench.paired import reason
from bench.rows import OURS, REFERENCE, Work
from bench.sizes import MEAN_CAPTIONS
from fastclip.data.packing import PackRule, TextPacker, rows_for
from fastclip.model.model_config import load_config
from fastclip_kernels import attention

CHECKED = 4  # rows of the batch
Form = Callable[..., Tensor]


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As the reference's towers call it: heads first, an additive mask. (B, T, H, W) in and out."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √W + mask) v with every score in memory."""
    scores = torch.einsum("bqhw,bkhw->bhqk", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return torch.einsum("bhqk,bkhw->bqhw", scores.softmax(-1), v)


def flash_attn() -> tuple[dict[str, Form], dict[str, str]]:
    """The peer where it is installed, else why not."""
    try:
        return {"flash-attn": importlib.import_module("flash_attn").flash_attn_func}, {}
    except Exception as error:  # it may fail to import in any way
        return {}, {"flash-attn": reason(error)}


def test_attention_of_pictures(contest: Contest) -> None:
    sizes, device = contest.sizes, contest.device
    vision = load_config(sizes.model).vision_cfg
    side, heads, rows = vision.image_size_pair[0] // vision.patch_size, vision.heads, sizes.pairs
    shape = (rows, side * side + 1, heads, vision.width // heads)
    generator = torch.Generator().manual_seed(0)
    qkv = {name: draw(generator, device, sizes.dtype, *shape) for name in "qkv"}
    peer, missing = flash_attn()
    forms: dict[str, Form] = {OURS: attention, REFERENCE: by_sdpa, **peer}
    few = {name: each[:CHECKED] for name, each in qkv.items()}
    op = f"attention {sizes.dtype}"
    bad = check_forms(op, forms, formula, few, ROUNDING[sizes.dtype])
    contest.run(
        "attention",
        f"image, {rows} x {shape[1]} tokens",
        {name: backward_of(form, qkv) for name, form in forms.items() if name not in bad},
        # two products forward, four backward; q, k, v in twice, result out, gradients in and out
        Work(rows, 6 * 2 * shape[1] * qkv["q"][0].numel(), 12 * _bytes(qkv["q"])),
        missing={**missing, **bad},
        rounds=sizes.ops,
    )


@pytest.mark.parametrize("mean", MEAN_CAPTIONS)
def test_attention_of_captions(mean: int, contest: Contest) -> None:
    sizes, device = contest.sizes, contest.device
    text = load_config(sizes.model).text_cfg
    length, shape = text.context_length, (text.heads, text.width // text.heads)
    lengths = np.resize(caption_lengths(DEMO, sizes.model), sizes.pairs)
    tokens = stretched(lengths, mean, length)
    ids = (torch.arange(length) == torch.from_numpy(tokens)[:, None] - 1).long()  # 1 at the end
    rows = rows_for(tokens, sizes.pairs, length)
    packed = TextPacker(PackRule(eos_id=1), rows)(ids)
    starts = packed.cu_seqlens.to(device)
    rows = len(packed.ids)

    generator = torch.Generator().manual_seed(0)
    qkv = {n: draw(generator, device, sizes.dtype, rows, length, *shape) for n in "qkv"}
    padded = {n: draw(generator, device, sizes.dtype, sizes.pairs, length, *shape) for n in "qkv"}
    causal = torch.full((length, length), float("-inf"), device=device).triu(1).to(sizes.dtype)
    ours = partial(attention, causal=True, cu_seqlens=starts)
    # a token sees those before it of its own segment; of the first rows, so that scores fit in memory
    few = min(CHECKED, rows)
    segment = torch.bucketize(torch.arange(few * length), packed.cu_seqlens.long(), right=True)
    segment = segment.view(few, 1, length).to(device)
    apart = (segment[..., None] != segment[..., None, :]) | causal.isinf()
    mask = torch.zeros(apart.shape, device=device, dtype=sizes.dtype).masked_fill(apart, -torch.inf)
    inside = torch.cat([starts[starts < few * length], starts.new_tensor([few * length])])
    bad = check_forms(
        f"packed attention {sizes.dtype}, captions of {mean}",
        {
            OURS: partial(attention, causal=True, cu_seqlens=inside),
            REFERENCE: partial(by_sdpa, mask=mask),
        },
        partial(formula, mask=mask),
        {name: each[:few] for name, each in qkv.items()},
        ROUNDING[sizes.dtype],
    )
    squares, count = float((tokens.astype(np.int64) ** 2).sum()), float(tokens.sum())
    contest.run(
        "attention",
        f"text, {sizes.pairs} captions of {tokens.mean():.0f} tokens",
        {
            OURS: backward_of(ours, qkv),
            REFERENCE: backward_of(partial(by_sdpa, mask=causal), padded),
        },
        Work(
            sizes.pairs,
            6 * 2 * squares * text.width,
            12 * count * text.width * sizes.dtype.itemsize,
        ),
        missing=bad,
        rounds=sizes.ops,
        mean_tokens=float(tokens.mean()),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
