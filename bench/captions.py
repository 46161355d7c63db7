"""Captions of real shards, as they are and stretched: what packed captions save depends on their lengths."""

from __future__ import annotations

import glob
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastclip
from fastclip.data.packing import PackRule

DEMO = str(Path(fastclip.__file__).parent / "demo" / "train-*.tar")


def captions_of(pattern: str) -> list[str]:
    """Every caption (`.txt` member) of the tar files that a shell pattern names. SystemExit where there is none."""
    captions = []
    for path in sorted(glob.glob(pattern)):
        with tarfile.open(path) as shard:
            captions += [
                reader.read().decode("utf-8", "replace")
                for member in shard
                if member.name.endswith(".txt") and (reader := shard.extractfile(member))
            ]
    if not captions:
        raise SystemExit(f"--train-data {pattern}: no captions (.txt members) there")
    return captions


def repeated(captions: list[str], count: int) -> list[str]:
    """So many, from the first on, and round again."""
    return (captions * (count // len(captions) + 1))[:count]


def caption_lengths(pattern: str, model: str) -> np.ndarray:
    """Tokens of every caption of those shards, up to and with the end of text."""
    ids = fastclip.get_tokenizer(model)(captions_of(pattern))
    return PackRule(eos_id=None).lengths(ids.numpy())


def stretched(lengths: np.ndarray, mean: float, context_length: int) -> np.ndarray:
    """The same captions longer or shorter, so that their mean is as given to within half a token."""
    low, high = 0.0, 100.0
    for _ in range(60):
        factor = (low + high) / 2
        new = np.clip(np.rint(lengths * factor), 2, context_length).astype(np.int64)
        low, high = (factor, high) if new.mean() < mean else (low, factor)
    return new


def stretched_ids(
    ids: Tensor,  # int64 (b, L), captions that end with their largest id
    mean: float,
) -> Tensor:  # int64 (b, L)
    """Captions of that mean length: each one's words said again until it is long enough, or cut."""
    ends = ids.argmax(dim=1)
    out = torch.zeros_like(ids)
    lengths = stretched(ends.numpy() + 1, mean, ids.shape[1])
    for row, end, length, into in zip(ids, ends.tolist(), lengths.tolist(), out, strict=True):
        words = row[1:end].repeat(ids.shape[1]) if end > 1 else row[:1].repeat(ids.shape[1])
        into[0], into[1 : length - 1], into[length - 1] = row[0], words[: length - 2], row[end]
    return out
