#!/usr/bin/env python3
"""Measure our training pixels beside the reference's on a folder of shards, and the pace of each
decoder.

The same draws go into torchvision's operations on Pillow pictures, into DALI on the CPU and into
the Pillow path. Bars: mean difference at most 2 grey levels, 99.5 % of values within 10
(evaluation: 8).
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
from open_clip.transform import image_transform

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastclip.config.images import AugmentConfig, PreprocessConfig  # noqa: E402
from fastclip.data.decode_dali import DaliTrainDecoder  # noqa: E402
from fastclip.data.decode_pillow import EvalDecoder, TrainDecoder  # noqa: E402
from fastclip.data.draws import UNCHANGED, AugmentSampler, Draw  # noqa: E402
from fastclip.data.image_header import read_header  # noqa: E402
from tests.data.pictures import encoded_batch, pil_rgb, reference_pixels  # noqa: E402

BATCH = 64
AUGMENT = AugmentConfig(
    scale=(0.4, 1.0),
    color_jitter=(0.32, 0.32, 0.32, 0.08),
    color_jitter_prob=0.8,
    gray_scale_prob=0.2,
    use_timm=True,
)


def read(shards: list[Path], count: int) -> list[bytes]:
    found: list[bytes] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png", ".webp")) and len(found) < count:
                    found.append(tar.extractfile(member).read())
    return found


def report(name: str, ours: np.ndarray, theirs: np.ndarray, level: int) -> bool:
    difference = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    mean, within = difference.mean(), (difference <= level).mean()
    worst = difference.reshape(len(difference), -1).mean(1).max()
    good = mean <= 2 and within >= 0.995
    print(
        f"{name:24s} mean {mean:.4f}  within {level}: {within:.4%}  largest {difference.max():3d}  "
        f"worst picture {worst:.3f}  {'ok' if good else 'TOO FAR'}"
    )
    return good


def by_dali(decoder: DaliTrainDecoder, pictures: list[bytes], draws: list[Draw]) -> np.ndarray:
    parts = [slice(i, i + BATCH) for i in range(0, len(pictures), BATCH)]
    return torch.cat([decoder(encoded_batch(pictures[p], draws[p])) for p in parts]).numpy()


def pace(name: str, count: int, work: Callable[[], object]) -> None:
    wall, cpu = [], []
    for _ in range(3):
        started = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    print(
        f"{name:40s} {count / sorted(wall)[1]:6.0f} pictures/s, "
        f"{1000 * sorted(cpu)[1] / count:.2f} ms of processor time a picture"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shards", type=Path, nargs="?", default=ROOT / "fastclip" / "demo")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", action="store_true", help="also measure pictures per second")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = read(sorted(arguments.shards.rglob("*.tar")), arguments.pictures)
    size = (arguments.size, arguments.size)
    preprocess = PreprocessConfig(size=size)
    sampler = AugmentSampler(AUGMENT, preprocess, arguments.seed)
    headers = [read_header(data) for data in pictures]
    drawn = [sampler(0, str(i), h.height, h.width) for i, h in enumerate(headers)]
    pillow = TrainDecoder(size, fast_resize=False)
    fast = TrainDecoder(size, fast_resize=True)
    cpu = torch.device("cpu")
    dali = DaliTrainDecoder(preprocess, AUGMENT, BATCH, cpu, threads=1, fast_resize=False)
    print(f"{len(pictures)} pictures of {arguments.shards} at {size[0]} pixels")
    good = True
    names = ("brightness", "contrast", "saturation", "hue")
    for case in ("crop only", *names, "grey", "all", "all and grey"):
        draws = [
            d._replace(
                factors=tuple(
                    f if case.startswith("all") or case == names[k] else UNCHANGED[k]
                    for k, f in enumerate(d.factors)
                ),
                gray="grey" in case,
            )
            for d in drawn
        ]
        theirs = np.stack(
            [reference_pixels(pil_rgb(p), d, size) for p, d in zip(pictures, draws, strict=True)]
        )
        good &= report(f"dali   {case}", by_dali(dali, pictures, draws), theirs, 10)
        for who, decoder in (("pillow", pillow), ("torch ", fast)):
            ours = np.stack([decoder(p, d) for p, d in zip(pictures, draws, strict=True)])
            good &= report(f"{who} {case}", ours, theirs, 10)
    for mode in ("shortest", "longest", "squash"):
        reference = image_transform(
            size[0], is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode
        )
        theirs = np.stack(
            [(reference(pil_rgb(p)) * 255).round().byte().permute(1, 2, 0) for p in pictures]
        )
        decoder = EvalDecoder(PreprocessConfig(size=size, resize_mode=mode))
        good &= report(f"eval   {mode}", np.stack([decoder(p) for p in pictures]), theirs, 8)
    if arguments.pace:
        count = len(pictures)
        transform = image_transform(
            size[0],
            is_train=True,
            aug_cfg={
                "scale": AUGMENT.scale,
                "color_jitter": AUGMENT.color_jitter,
                "use_timm": True,
            },
        )
        assert isinstance(transform, T.Compose)
        pace("reference, 1 thread", count, lambda: [transform(pil_rgb(p)) for p in pictures])
        for resizer, decoder in (("Pillow", pillow), ("torch", fast)):
            pace(
                f"ours, Pillow, resized by {resizer}, 1 thread",
                count,
                lambda d=decoder: [d(p, draw) for p, draw in zip(pictures, drawn, strict=True)],
            )
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decoder = DaliTrainDecoder(preprocess, AUGMENT, BATCH, cpu, threads, fast_resize=False)
            by_dali(decoder, pictures[:BATCH], drawn[:BATCH])
            pace(
                f"ours, DALI on the CPU, {threads} thread(s)",
                count,
                lambda d=decoder: by_dali(d, pictures, drawn),
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
