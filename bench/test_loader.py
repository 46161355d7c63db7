"""The loaders as processes, an epoch a round: shards to batches on the device, decoded, augmented and tokenised."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from bench import reference_environment
from bench.contest import Contest
from bench.correctness import require_right
from bench.loader_process import Epoch, LoaderProcess
from bench.rows import OURS, REFERENCE, Work
from bench.sizes import Sizes
from bench.whole_trainer import DEMO

WORKERS = 1
BATCHES = 4  # of an epoch


@pytest.fixture(scope="session")  # they are visited again after their test
def loaders(sizes: Sizes, device: torch.device) -> Iterator[dict[str, LoaderProcess]]:
    words = [sizes.model, DEMO, str(sizes.pictures), str(sizes.pictures // BATCHES), str(WORKERS)]
    python = {OURS: sys.executable}
    if reference_environment.is_there():
        python[REFERENCE] = str(reference_environment.PYTHON)
    kinds = {OURS: "ours", REFERENCE: "reference"}
    started = {
        name: LoaderProcess(path, kinds[name], *words, device.type) for name, path in python.items()
    }
    yield started
    for loader in started.values():
        loader.close()


def differences(got: Epoch, wanted: Epoch, pictures: int) -> list[str]:
    """The samples of an epoch are drawn, so that means are compared."""
    found = []
    if got.pictures != pictures:
        found.append(f"{got.pictures} pictures of {pictures}")
    mine, theirs = got.tokens / got.pictures, wanted.tokens / wanted.pictures
    if abs(mine / theirs - 1) > 0.1:
        found.append(f"captions of {mine:.1f} tokens on average, {theirs:.1f} with the reference")
    if abs(got.pixel_mean - wanted.pixel_mean) > 0.2:
        found.append(f"mean pixel {got.pixel_mean:.2f}, {wanted.pixel_mean:.2f} with the reference")
    return found


def test_loader(loaders: dict[str, LoaderProcess], contest: Contest) -> None:
    sizes = contest.sizes
    for loader in loaders.values():
        loader.epoch()
    theirs = loaders.get(REFERENCE)
    if theirs is not None:
        require_right("loader", differences(loaders[OURS].last, theirs.last, sizes.pictures))
    contest.run(
        "loader",
        f"{sizes.pictures:,} pictures, {WORKERS} process",
        {name: loader.epoch for name, loader in loaders.items()},
        Work(sizes.pictures),
        missing={} if theirs is not None else {REFERENCE: reference_environment.MISSING},
        rounds=sizes.parts,
        warm_up=0,
    )
