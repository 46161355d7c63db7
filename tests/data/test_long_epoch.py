"""An epoch of 100,000 samples leaves memory, threads, open files and the log as small as they were."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastclip.data.bad_samples import BAD_PICTURE, NO_PICTURE
from fastclip.data.loader import TrainLoader
from tests.data.loaders import build
from tests.data.shard_files import Member, jpeg, tar_bytes
from tests.live_processes import live_processes

pytestmark = pytest.mark.slow

SAMPLES = 100_000


def write(folder: Path, members: Callable[[int], list[Member]], shards: int) -> None:
    for shard in range(shards):
        numbers = range(shard, SAMPLES, shards)
        of_shard = itertools.chain.from_iterable(members(number) for number in numbers)
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes(of_shard))


def resources() -> tuple[float, int, int]:
    """MB of memory, threads and open files of this process and its children."""
    megabytes, threads, files = 0.0, 0, 0
    for process in (os.getpid(), *live_processes("parent", os.getpid())):
        status = Path(f"/proc/{process}/status").read_text()
        field = dict(line.split(":", 1) for line in status.splitlines())
        # Batches on their way are in shared memory. Not the pages of files, which are the system's to drop.
        megabytes += sum(int(field[kind].split()[0]) for kind in ("RssAnon", "RssShmem")) / 1024
        threads += int(field["Threads"])
        files += len(os.listdir(f"/proc/{process}/fd"))
    return megabytes, threads, files


def loader_of(folder: Path, **options: Any) -> TrainLoader:
    loader = build(
        train_data=str(folder), dataset_type="webdataset", workers=1, batch_size=16, **options
    ).train
    assert loader is not None
    return loader


def test_memory_threads_and_files_stay_flat(tmp_path: Path) -> None:
    pictures = [jpeg(number) for number in range(50)]
    write(
        tmp_path,
        lambda n: [
            (f"{n:06d}.jpg", pictures[n % 50]),
            (f"{n:06d}.txt", b"a caption of some words"),
        ],
        shards=20,
    )
    loader = loader_of(tmp_path, train_num_samples=SAMPLES)
    marks = []
    for step, _ in enumerate(loader.epoch(0), 1):
        if step % 125 == 0 and step > 1500:  # the shuffle buffer is full long before
            marks.append((step, *resources()))
    loader.close()
    steps, megabytes, threads, files = (np.array(column) for column in zip(*marks, strict=True))
    slope = np.polyfit(steps / 1000, megabytes, 1)[0]
    print(f"{slope:+.2f} MB per 1,000 steps, {megabytes.min():.0f} to {megabytes.max():.0f} MB")
    assert slope < 1
    third = len(steps) // 3
    for count in (threads, files):  # batches that are being handed over have some of each
        assert np.median(count[-third:]) - np.median(count[:third]) <= 1, count


def test_a_log_of_100_000_bad_samples_is_short_and_its_counts_exact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = jpeg(0)
    kinds: list[tuple[str, bytes]] = [
        ("jpg", good[:-40]),
        ("jpg", b""),
        ("jpg", b"<html><body>404 Not Found</body></html>"),
        ("gif", b"GIF89a"),
    ]

    def members(number: int) -> list[Member]:
        suffix, content = ("jpg", good) if number % 100 == 0 else kinds[number % 4]
        return [(f"{number:06d}.{suffix}", content), (f"{number:06d}.txt", b"words")]

    write(tmp_path, members, shards=3)
    loader = loader_of(tmp_path, train_num_samples=992)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert sum(len(batch.images) for batch in loader.epoch(0)) == 992
    loader.close()
    log = "".join(f"2026-01-01,00:00:00 | WARNING | {r.getMessage()}\n" for r in caplog.records)
    print(f"{loader.bad.counts}, {len(log):,} bytes of log")
    assert loader.bad.counts.keys() == {BAD_PICTURE, NO_PICTURE}
    assert 190_000 < loader.bad.dropped <= 2 * 99_000
    assert len(log) < 50_000
