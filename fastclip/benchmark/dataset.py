"""A data set of a benchmark, read but for its pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fastclip.data.tar_index import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """N pictures of classes."""

    name: str
    places: Sequence[Place]
    labels: Tensor  # int64 (N,); bool (N, classes) where a picture may be of several
    classnames: tuple[str, ...]
    templates: tuple[str, ...]  # sentences with one {} each
    metadata: Tensor | None = None  # int64 (N, fields)

    def fingerprint(self) -> str:
        words = "\n".join((*self.classnames, "", *self.templates))
        return _digest(self.places, words.encode(), self.labels.numpy().tobytes())


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """N pictures with the captions of each."""

    name: str
    places: Sequence[Place]
    captions: Sequence[Sequence[str]]
    # samples that are no such picture, by cause
    left_out: Mapping[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        return _digest(self.places, repr(self.captions).encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Riddles:
    """Cue words, each with candidate pictures of which some go with it."""

    name: str
    places: Sequence[Place]
    cues: Sequence[str]
    candidates: Sequence[range]  # per cue, which of `places`
    is_associated: Sequence[Tensor]  # per cue, bool (candidates,)

    def fingerprint(self) -> str:
        right = [flags.tolist() for flags in self.is_associated]
        return _digest(self.places, repr((self.cues, self.candidates, right)).encode())


def causes(bad: Mapping[str, int]) -> str:
    """How many samples were left out, by cause, as part of a sentence; "" where none was."""
    return ", ".join(f"{cause}: {count}" for cause, count in sorted(bad.items()))


def _digest(places: Sequence[Place], *contents: bytes) -> str:
    """Of contents, and of names, sizes and times of change of the files that hold the pictures."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(place.path for place in places):
        try:
            stat = os.stat(path)
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
