"""Pictures and captions of webdataset shards on this machine, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastclip.data.shard_spec import expand_shards
from fastclip.data.tar_index import index_tar


class Pair(NamedTuple):
    picture: bytes  # as it is in the shard, undecoded
    caption: str


def pairs(spec: str, flag: str) -> Iterator[Pair]:
    """`spec` as `--train-data` has it; `flag` is what messages call it. Samples without one of the two are left out."""
    for url in expand_shards(spec, flag).urls:
        for sample in index_tar(Path(url), frozenset({"txt"})):
            if sample.picture is not None and "txt" in sample.fields:
                with open(sample.picture.path, "rb") as file:
                    file.seek(sample.picture.offset)
                    picture = file.read(sample.picture.size)
                yield Pair(picture, sample.fields["txt"].decode())
