"""Matrix-product FLOPs of a training step for one sample: OpenCLIP's, ours, and what each saving is worth.

    python -m bench.step_flops [--model ViT-B-32-256] [--batch-size 896] [--train-data SHARDS]

Counted on shapes alone, forward and backward and loss, by torch's FLOP counter on the meta device, where attention is
taken apart into products that it knows. Prints Markdown; docs/performance.md holds what it printed. Caption lengths are
those of --train-data (default: the bundled demo shards); other means are the same captions stretched.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fastclip
from bench.captions import DEMO, caption_lengths, stretched
from bench.loss_peers import reference_losses
from fastclip.data.batch import PackedText
from fastclip.data.packing import PackRule, TextPacker, rows_for
from fastclip_kernels import ClipLoss, flops

MEAN_LENGTHS = (11, 20, 35, 77)


def _counted(step: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        step().backward()
    return counter.get_total_flops()


def reference_flops(name: str, batch_size: int, *, checkpointing: bool) -> int:
    """Of OpenCLIP's model and loss, a whole step."""
    import open_clip

    model: Any = open_clip.create_model(name, output_dict=True).to("meta")
    model.set_grad_checkpointing(checkpointing)
    loss = reference_losses().ClipLoss()
    size = model.visual.image_size
    images = torch.empty(batch_size, 3, *size, device="meta")
    texts = torch.empty(batch_size, model.context_length, dtype=torch.int64, device="meta")
    return _counted(lambda: loss(**model(images, texts)))


def our_flops(
    name: str,
    batch_size: int,
    lengths: np.ndarray | None,  # of captions that are packed; None: not packed
    *,
    recompute: str,
    prune: bool,
) -> int:
    """Of our model and loss, a whole step."""
    flops.register()
    model: Any = fastclip.create_model(name, output_dict=True).to("meta")
    model.set_recompute(recompute)
    if prune:
        model.prune_last_block()
    height, width = model.visual.preprocess_cfg.size
    images = torch.empty(batch_size, height, width, 3, dtype=torch.uint8, device="meta")
    length = model.context_length
    texts: Tensor | PackedText = torch.empty(batch_size, length, dtype=torch.int64, device="meta")
    if lengths is not None:
        rows = rows_for(lengths, batch_size, length)
        texts = TextPacker(PackRule(eos_id=None), rows).shapes(batch_size, length)
    loss = ClipLoss()
    return _counted(lambda: loss(**model(images, texts)))


def table(name: str, batch_size: int, lengths: np.ndarray) -> Iterator[str]:
    """Lines of two Markdown tables."""

    def of(total: int) -> str:
        return f"{total / batch_size / 1e9:.1f}"

    reference = reference_flops(name, batch_size, checkpointing=True)
    without = reference_flops(name, batch_size, checkpointing=False)
    steps = [
        ("all savings off", None, "full", False),
        ("+ cheap recompute", None, "pointwise", False),
        ("+ pruned last block", None, "pointwise", True),
        ("+ packed captions", lengths, "pointwise", True),
    ]
    yield f"{name}, {batch_size} pairs, captions of {lengths.mean():.1f} tokens on average:"
    yield ""
    yield "| | GFLOP a sample | of OpenCLIP with `--grad-checkpointing` |"
    yield "|---|---|---|"
    yield f"| OpenCLIP, `--grad-checkpointing` | {of(reference)} | 1 |"
    yield f"| OpenCLIP without | {of(without)} | {without / reference:.3f} |"
    for label, packed, recompute, prune in steps:
        total = our_flops(name, batch_size, packed, recompute=recompute, prune=prune)
        yield f"| {label} | {of(total)} | {total / reference:.3f} |"
    yield ""
    yield "| mean caption, tokens | GFLOP a sample | of OpenCLIP with | of OpenCLIP without checkpointing |"
    yield "|---|---|---|---|"
    for mean in MEAN_LENGTHS:
        long = stretched(lengths, mean, 77)
        total = our_flops(name, batch_size, long, recompute="pointwise", prune=True)
        yield f"| {mean} | {of(total)} | {total / reference:.3f} | {total / without:.3f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32-256")
    parser.add_argument("--batch-size", type=int, default=896)
    parser.add_argument("--train-data", default=DEMO, help="tar files, as a shell pattern")
    options = parser.parse_args(arguments)
    lengths = caption_lengths(options.train_data, options.model)
    for line in table(options.model, options.batch_size, lengths):
        print(line)


if __name__ == "__main__":
    main()
