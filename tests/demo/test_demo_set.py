"""The bundled demo set is what its README says: small, distinct, and split without a leak."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import fastclip

DEMO = Path(fastclip.__file__).parent / "demo"
SHARDS = sorted(DEMO.glob("*.tar"))


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            found.setdefault(key, {})[extension] = file.read()
    return found


@pytest.fixture(scope="module")
def shards() -> dict[str, dict[str, dict[str, bytes]]]:
    return {path.name: samples(path) for path in SHARDS}


def test_counts_are_those_of_sizes_json(shards):
    sizes = json.loads((DEMO / "sizes.json").read_text())
    assert sizes == {name: len(members) for name, members in shards.items()}
    assert sorted(sizes) == [*(f"train-{i:04d}.tar" for i in range(4)), "val-0000.tar"]
    readme = (DEMO / "README.md").read_text()
    train = sum(n for name, n in sizes.items() if name.startswith("train"))
    assert f"{train:,} pictures to train on" in readme
    assert f"{sizes['val-0000.tar']} held out" in readme


def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 6_000_000


def test_every_sample_is_a_picture_with_a_caption(shards):
    for members in shards.values():
        for parts in members.values():
            assert set(parts) == {"jpg", "txt"}
            picture = Image.open(io.BytesIO(parts["jpg"]))
            picture.load()
            assert picture.format == "JPEG"
            assert picture.mode == "RGB"
            assert min(picture.size) <= 72
            assert parts["txt"].decode().strip()


def test_nothing_occurs_twice(shards):
    every = [parts for members in shards.values() for parts in members.values()]
    assert len({parts["txt"] for parts in every}) == len(every)
    assert len({hashlib.sha1(parts["jpg"]).digest() for parts in every}) == len(every)
    keys = [key for members in shards.values() for key in members]
    assert len(set(keys)) == len(keys)


def test_held_out_categories_were_trained_on(shards):
    def categories(prefix: str) -> set[str]:
        return {
            parts["txt"].decode().partition(", ")[2]
            for name, members in shards.items()
            if name.startswith(prefix)
            for parts in members.values()
        }

    assert categories("val") <= categories("train")
