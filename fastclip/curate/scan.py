"""One shard, read as training reads it: what its samples are like, and everything that is wrong with it."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np

from fastclip.curate.every_note import EveryNote
from fastclip.data.bad_samples import BAD_PICTURE, BadEvent
from fastclip.data.image_header import BadImage, decode_rgb, read_header
from fastclip.data.shard_spec import shard_name
from fastclip.data.shards import read_shards
from fastclip.data.tokenizer import ClipTokenizer

MAX_TOKENS = 256
_TOKENIZED_AT_ONCE = 4096

# One row a sample: 40 bytes, so that the samples of a large data set fit in memory.
SAMPLE = np.dtype(
    [
        ("width", np.uint32),
        ("height", np.uint32),
        ("bytes", np.uint32),  # of the encoded picture
        ("tokens", np.uint32),  # of the caption with both marks, at most MAX_TOKENS
        ("picture", np.uint64),  # hashes of picture, caption and key
        ("caption", np.uint64),
        ("key", np.uint64),
    ]
)


class ShardScan(NamedTuple):
    url: str
    samples: np.ndarray  # (n,) of SAMPLE: those that training would use
    formats: Counter[str]  # Pillow's name and mode, "JPEG RGB"
    events: list[BadEvent]


def scan_shard(url: str, decode: bool) -> ShardScan:
    """Read all of `url`. With `decode` pictures are decoded, which finds what their headers do not show."""
    notes, formats = EveryNote(), Counter[str]()
    rows: list[tuple[int, ...]] = []
    captions: list[str] = []
    lengths: list[int] = []
    for sample in read_shards([(url, "")], notes):
        try:
            header = read_header(sample.image)
            if decode:
                decode_rgb(sample.image)
        except BadImage as error:
            notes.note(BAD_PICTURE, sample.key, error.cause)
            continue
        formats[f"{header.format} {header.mode}"] += 1
        hashes = (sample.image, sample.caption.encode(), sample.key.encode("utf-8", "replace"))
        size = (header.width, header.height, len(sample.image))
        rows.append((*size, 0, *map(_hash, hashes)))
        captions.append(sample.caption)
        if len(captions) == _TOKENIZED_AT_ONCE:
            lengths += token_counts(captions)
            captions.clear()
    samples = np.array(rows, SAMPLE)
    samples["tokens"] = lengths + token_counts(captions)
    return ShardScan(url, samples, formats, notes.take_events())


def token_counts(captions: list[str]) -> list[int]:
    """Tokens of CLIP's tokenizer with both marks, MAX_TOKENS for what has as many or more."""
    if not captions:
        return []
    # the end mark has the largest id of all
    return (_tokenizer()(captions).argmax(dim=1) + 1).tolist()


@functools.cache
def _tokenizer() -> ClipTokenizer:
    return ClipTokenizer(MAX_TOKENS)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def shard_of(event: BadEvent, url: str) -> tuple[str, str]:
    """The shard and the key of an event; the key is "" where it is about the shard as a whole."""
    name = shard_name(url)
    start = name + "/"
    return name, event.where[len(start) :] if event.where.startswith(start) else ""
