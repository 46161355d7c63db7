"""Loading with bad samples mixed in: samples/s by rate, log bytes, and memory, threads and files over the samples.

    python -m bench.bad_data [--samples 20000] [--decoder dali|pillow] [--workers 2] [--rounds 3]

Rates take turns, in rounds. Memory is the resident size of all processes, at a quarter of each epoch
and at its end.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import tarfile
import tempfile
import time
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from fastclip.config.images import PreprocessConfig
from fastclip.config.train_config import DataConfig
from fastclip.data.build import build_data
from fastclip.data.tokenizer import ClipTokenizer

RATES = (0.0, 0.001, 0.01, 0.1)
BATCH = 64


def jpegs(count: int) -> list[bytes]:
    """Pictures of 320 x 240 pixels: noise at 40 x 30, smoothly enlarged."""
    made = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        made.append(buffer.getvalue())
    return made


def write(folder: Path, samples: int, rate: float, shards: int) -> None:
    pictures = jpegs(50)
    bad = cycle([pictures[0][:-500], b"", b"<html>404</html>", pictures[1][:100]])
    period = round(1 / rate) if rate else samples + 1
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for number in range(shard, samples, shards):
                broken = number // shards % period == period // 2
                picture = next(bad) if broken else pictures[number % len(pictures)]
                for suffix, content in (("jpg", picture), ("txt", b"a caption of some words")):
                    header = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    header.size = len(content)
                    archive.addfile(header, io.BytesIO(content))


def resources() -> tuple[float, int, int]:
    """MB resident, threads and open files, of this process and its children."""
    memory = threads = files = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in [os.getpid(), *children]:
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        memory += int(fields["VmRSS"].split()[0])
        threads += int(fields["Threads"])
        files += len(os.listdir(f"/proc/{process}/fd"))
    return memory / 1024, threads, files


def epoch(folder: Path, samples: int, options: argparse.Namespace, log: io.StringIO) -> float:
    """Samples/s of one epoch; prints its resources."""
    config = DataConfig(
        train_data=str(folder),
        train_num_samples=samples,
        batch_size=BATCH,
        workers=options.workers,
        decoder=options.decoder,
    )
    loader = build_data(
        config,
        PreprocessConfig(),
        ClipTokenizer(),
        seed=0,
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
    ).train
    assert loader is not None
    log.truncate(0)
    log.seek(0)
    marks = []
    started = time.perf_counter()
    for step, _ in enumerate(loader.epoch(0), 1):
        if step in (loader.num_batches // 4, loader.num_batches):
            marks.append(resources())
    seconds = time.perf_counter() - started
    loader.close()
    (m0, t0, f0), (m1, t1, f1) = marks
    print(
        f"  {folder.name}: {loader.bad.dropped:,} bad, {len(log.getvalue()):,} bytes of log, "
        f"memory {m0:.0f} to {m1:.0f} MB, threads {t0} to {t1}, files {f0} to {f1}"
    )
    return loader.bad.kept / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--decoder", choices=["dali", "pillow"], default="dali")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {rate: Path(scratch, f"rate {rate:g}") for rate in RATES}
        for rate, folder in folders.items():
            write(folder, options.samples, rate, shards=4 * max(1, options.workers))
        speeds: dict[float, list[float]] = {rate: [] for rate in RATES}
        for number in range(options.rounds):
            print(f"round {number + 1}")
            for rate, folder in folders.items():
                good = round(options.samples * (1 - rate)) * 9 // 10
                speeds[rate].append(epoch(folder, good, options, log))
        clean = median(speeds[0.0])
        for rate, values in speeds.items():
            print(
                f"{rate:.1%} bad: {median(values):,.0f} good samples/s, {median(values) / clean - 1:+.1%}"
            )


if __name__ == "__main__":
    main()
