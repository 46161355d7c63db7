"""A training step of both trainers on batches that are already on the device: samples/s, utilisation, memory.

    python -m bench.step_on_device --out FOLDER [--model ViT-B-32-256] [--batch-size 896] [--seconds 300] [--toy]

Real caption lengths: those of the bundled shards, and the same captions stretched to means of 20 and 40 tokens. Ways:

    open_clip            the flags of a user's training script: --grad-checkpointing, amp_bfloat16, eager
    open_clip, compiled  no checkpointing, torch.compile; the batch size of several that is its best
    fastclip             the same flags as open_clip
    fastclip, kept       with --recompute none: all activations kept

Each way is first run by itself, for its memory (all that torch allocated at the peak) and its best batch size. A rate
is samples over the median of alternating rounds. Utilisation is useful FLOPs, those of the captions' own tokens
without recomputation, over time and peak: that of the data sheet, and that which GEMMs of the model's own shapes
reach in the same run. Writes step_on_device.json after every caption length.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastclip
from bench.captions import DEMO, captions_of, repeated, stretched_ids
from bench.ceilings import gemm_rate, gemm_shapes, useful_flops
from bench.machine import machine, write
from bench.paired import Timing, alternate, ratio, reason
from bench.resident_step import Step, our_step, reference_step
from fastclip.model.model_config import load_config
from fastclip.train.mfu import peak_flops
from fastclip.train.precision import set_backend_precision

MEANS = (None, 20, 40)  # tokens; None: as they are
USER_FLAGS = [
    *("--train-data", "unused", "--logs", "none", "--local-loss", "--gather-with-grad"),
    *("--lr", "0.001", "--warmup", "2000", "--beta1", "0.9", "--beta2", "0.95", "--wd", "0.2"),
    *("--precision", "amp_bfloat16"),
]


def batches(model: str, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random pictures, uint8 (B, H, W, 3) on the device, and real captions, int64 (B, L)."""
    height, width = load_config(model).vision_cfg.image_size_pair
    generator = torch.Generator(device).manual_seed(0)
    size = (batch_size, height, width, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device, generator=generator)
    texts: Tensor = fastclip.get_tokenizer(model)(repeated(captions_of(DEMO), batch_size))
    return images, texts


def fresh(device: torch.device) -> None:
    """No graph and no memory of what ran before."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Way(NamedTuple):
    """One way to train, and how many samples a step of it takes."""

    make: Callable[[], Step]
    batch_size: int


class Alone(NamedTuple):
    """A way that had the device to itself."""

    rate: float  # samples/s
    peak_bytes: int | None  # of all that torch allocated: weights, optimiser state, activations


def run_alone(way: Way, device: torch.device) -> Alone | str:
    """Built, warmed up, timed for three rounds and let go; or why it could not run."""
    fresh(device)
    try:
        step = way.make()
        timing = alternate({"step": step}, device, rounds=3, warm_up=3)["step"]
    except Exception as error:  # one that cannot be built must not cost the others
        return reason(error)
    if isinstance(timing, str):
        return timing
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return Alone(way.batch_size / timing.median, peak)


def ways_of(options: argparse.Namespace, images: Tensor, texts: Tensor) -> dict[str, list[Way]]:
    """By name; where a way has several batch sizes, its best one counts."""
    name, count = options.model, options.batch_size
    flags = [
        *USER_FLAGS,
        "--model",
        name,
        "--batch-size",
        str(count),
        "--device",
        images.device.type,
    ]
    checkpointed = [*flags, "--grad-checkpointing"]

    def compiled(size: int) -> Way:
        repeats = -(-size // count)
        pixels = images.repeat(repeats, 1, 1, 1)[:size]
        captions = texts.repeat(repeats, 1)[:size]
        return Way(lambda: reference_step(flags, pixels, captions, compiled=True), size)

    found = {
        "open_clip": [Way(lambda: reference_step(checkpointed, images, texts), count)],
        "fastclip": [Way(lambda: our_step(checkpointed, images, texts), count)],
        "fastclip, kept": [
            Way(lambda: our_step([*flags, "--recompute", "none"], images, texts), count)
        ],
    }
    if not options.toy:
        sizes = [count // 4, count // 2, count, 2 * count]
        found["open_clip, compiled"] = [compiled(size) for size in sizes]
    return found


def compare(options: argparse.Namespace, device: torch.device, mean: int | None) -> dict[str, Any]:
    """One caption length: every way by itself, for its memory and its best batch size; then all in turns."""
    name, count = options.model, options.batch_size
    images, texts = batches(name, count, device)
    if mean is not None:
        texts = stretched_ids(texts, mean)
    tokens = float((texts.argmax(dim=1) + 1).double().mean())
    rows: dict[str, dict[str, Any]] = {}
    best: dict[str, Way] = {}
    for label, candidates in ways_of(options, images, texts).items():
        alone = [run_alone(way, device) for way in candidates]
        ran = [
            (a.rate, a, w) for a, w in zip(alone, candidates, strict=True) if isinstance(a, Alone)
        ]
        if not ran:
            rows[label] = {"error": alone[0]}
            print(f"{tokens:.1f} tokens, {label}: {alone[0]}", flush=True)
            continue
        _, result, best[label] = max(ran, key=lambda each: each[0])
        rows[label] = {"batch_size": best[label].batch_size, "peak_bytes": result.peak_bytes}

    fresh(device)
    timings = alternate({label: way.make() for label, way in best.items()}, device,
                        rounds=3 if options.toy else 9, warm_up=3)  # fmt: skip
    needed = useful_flops(name, tokens)
    ceiling = gemm_rate(gemm_shapes(name, count, int(count * tokens)), device, torch.bfloat16)
    sheet = peak_flops(device, "amp_bf16")
    ours = timings.get("fastclip")
    for label, timing in timings.items():
        if isinstance(timing, str):
            rows[label]["error"] = timing
            continue
        rate = best[label].batch_size / timing.median
        rows[label] |= {
            "seconds": timing.seconds,
            "samples_per_second": rate,
            "of_gemm_rate": rate * needed / ceiling,
            "of_data_sheet": None if sheet is None else rate * needed / sheet,
        }
        if isinstance(ours, Timing):
            of_step = ratio(timing, ours)
            rows[label]["fastclip_is_times_as_fast"] = of_step * count / best[label].batch_size
        print(f"{tokens:.1f} tokens, {label}: {rate:.1f} samples/s", flush=True)
    return {"mean_tokens": tokens, "useful_flops": needed, "gemm_flops": ceiling, "ways": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for step_on_device.json")
    parser.add_argument("--model", default="ViT-B-32-256")
    parser.add_argument("--batch-size", type=int, default=896)
    parser.add_argument("--seconds", type=float, default=300, help="no caption length begins after")
    parser.add_argument(
        "--toy", action="store_true", help="few rounds, nothing compiled: any machine"
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.toy and device.type != "cuda":
        print("there is no GPU here: pass --toy for a small run on the CPU", file=sys.stderr)
        return 2
    set_backend_precision(device, deterministic=False)
    started, cases = time.monotonic(), []
    for mean in MEANS:
        if time.monotonic() - started > options.seconds:
            print(f"captions of {mean} tokens: not run, out of time", flush=True)
            continue
        cases.append(compare(options, device, mean))
        write(
            options.out / "step_on_device.json",
            {"machine": machine(device), "model": options.model, "cases": cases},
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
