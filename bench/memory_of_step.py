"""Peak memory of one training step on a CPU, ours beside the reference's with its --grad-checkpointing.

    python -m bench.memory_of_step [--model ViT-B-32-256] [--batch-size 32] [--precision amp_bfloat16]

Each way takes two steps in a process of its own (the second has the optimiser's state), with one thread, on random
pictures and the captions of the bundled shards; its peak is the system's (VmHWM) less what importing everything took.
The reference is open_clip's model and loss and torch's AdamW, joined as its trainer joins them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
STEPS = 2
# our flags beside --grad-checkpointing, by the name of the way
OURS = {
    "auto": [],
    "none": ["--recompute", "none"],
    "pointwise": ["--recompute", "pointwise"],
    "full": ["--recompute", "full"],
}


def of_this_process(what: str) -> int:
    """VmHWM or VmRSS in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) * 1024


def demo_captions(count: int) -> list[str]:
    captions: list[str] = []
    for shard in sorted((ROOT / "fastclip" / "demo").glob("train-*.tar")):
        with tarfile.open(shard) as members:
            for member in members:
                if member.name.endswith(".txt"):
                    captions.append(members.extractfile(member).read().decode())  # type: ignore[union-attr]
    return (captions * (count // len(captions) + 1))[:count]


def our_step(flags: list[str], images: Tensor, texts: Tensor) -> Callable[[], Any]:
    """The trainer's own step, put together as `train/setup.py` does."""
    from fastclip.config.parse import parse_args
    from fastclip.config.resolve import resolve
    from fastclip.data.batch import Batch
    from fastclip.data.packing import TextPacker, rows_for
    from fastclip.model.factory import create_training_model
    from fastclip.optim.build import build_optimizer
    from fastclip.optim.update import Update
    from fastclip.train.distributed import World
    from fastclip.train.losses import make_loss
    from fastclip.train.packed_captions import set_up_packing
    from fastclip.train.precision import autocast_factory, input_dtype
    from fastclip.train.recompute_choice import recompute_less_if_it_fits
    from fastclip.train.setup import prepare_for_training
    from fastclip.train.step import Forward, PlainStep

    config, world = resolve(parse_args(flags)), World()
    model: Any = create_training_model(
        config.model, precision=config.precision, device=world.device, siglip=False
    )
    prepare_for_training(model, config.model)
    rule = set_up_packing(model, None, config, world.device)
    batch, packer = Batch(images, texts), None
    if rule is not None:
        lengths = rule.lengths(texts.numpy())
        packer = TextPacker(rule, rows_for(lengths, *texts.shape))
        batch = packer.batch(images, texts)
    loader: Any = SimpleNamespace(packer=packer)
    recompute_less_if_it_fits(model, None, loader, config, world)
    update = Update(
        build_optimizer(config.optim, model),
        model.logit_scale,
        clip_norm=config.optim.grad_clip_norm,
        scaler=None,
        nonfinite=config.optim.nonfinite,
    )
    step = PlainStep(
        Forward(model, None, input_dtype(config.precision)),
        make_loss(config.loss, world, captions=False),
        update,
        autocast_factory(config.precision, world.device),
    )
    return lambda: step([batch])


def reference_step(flags: list[str], images: Tensor, texts: Tensor) -> Callable[[], Any]:
    import open_clip
    from open_clip_train import params
    from open_clip_train.precision import get_autocast

    args = params.parse_args(flags)
    model: Any = open_clip.create_model(args.model, precision=args.precision, output_dict=True)
    model.set_grad_checkpointing()
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std  # as its loader hands them on
    loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps
    )
    autocast = get_autocast(args.precision, device_type="cpu")

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            total = sum(loss(**model(pixels, texts), output_dict=True).values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return step


def measure(way: str, model: str, batch_size: int, precision: str) -> int:
    """Bytes at the peak of the steps above what importing took; in this process."""
    import open_clip  # noqa: F401 (both sides begin with all that either imports)
    import open_clip_train.params  # noqa: F401

    import fastclip.train.setup  # noqa: F401
    from fastclip.data.tokenizer import build_tokenizer
    from fastclip.model.model_config import load_config, tokenizer_spec

    torch.set_num_threads(1)
    torch.manual_seed(0)
    height, width = load_config(model).vision_cfg.image_size_pair
    tokenize = build_tokenizer(
        tokenizer_spec(model, context_length=None, tokenizer_file=None, cache_dir=None)
    )
    texts = tokenize(demo_captions(batch_size))
    images = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8)
    before = of_this_process("VmRSS")
    flags = ["--train-data", "unused", "--model", model, "--precision", precision]
    flags += ["--batch-size", str(batch_size), "--local-loss", "--gather-with-grad"]
    if way == "reference":
        step = reference_step(flags, images, texts)
    else:
        ours = ["--logs", "none", "--device", "cpu", "--grad-checkpointing", *OURS[way]]
        step = our_step([*flags, *ours], images, texts)
    for _ in range(STEPS):
        step()
    return of_this_process("VmHWM") - before


def measure_each(ways: list[str], model: str, batch_size: int, precision: str) -> dict[str, int]:
    """The same for each way, in a fresh process."""
    peaks = {}
    for way in ways:
        words = [sys.executable, "-m", "bench.memory_of_step", "--model", model, "--one", way]
        words += ["--batch-size", str(batch_size), "--precision", precision]
        run = subprocess.run(
            words,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks[way] = int(run.stdout.split()[-1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32-256")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="amp_bfloat16")
    parser.add_argument("--one", choices=["reference", *OURS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    where = (args.model, args.batch_size, args.precision)
    if args.one:
        print(measure(args.one, *where))
        return
    peaks = measure_each(["reference", *OURS], *where)
    for way, peak in peaks.items():
        ratio = peak / peaks["reference"]
        print(f"{way:>10}  {peak / 1e6:8.0f} MB  {ratio:.3f} of the reference's", file=sys.stderr)
    print(json.dumps({"model": args.model, "batch_size": args.batch_size, "peak_bytes": peaks}))


if __name__ == "__main__":
    main()
