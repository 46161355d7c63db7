"""Captions end to end: dense token ids to a `PackedText` of one size for the whole run.

A causal tower that reads its end-of-text token never looks at what follows it, so a caption is cut
there, and as many as fit lie side by side in a row. Rows of one fixed number keep shapes static;
a batch of unusually long captions takes one row a caption, which always fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastclip.data.batch import Batch, PackedText

SIGMAS = 4  # of a batch's token count above its mean: one batch in some 30,000 takes the large size
_TRIALS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PackRule:
    """Where a caption ends, and who else wants it."""

    eos_id: int | None  # None: at its largest id, as the tower's pooling has it
    keep_dense: bool = False  # for a teacher that takes no packed captions

    def lengths(self, texts: np.ndarray) -> np.ndarray:
        """Tokens of each caption of int64 (b, L), up to and with its end of text: int64 (b,).

        Where no id is the end of text the towers read the first token, and so this is 1.
        """
        ends = texts if self.eos_id is None else texts == self.eos_id
        return ends.argmax(axis=1) + 1


class Places(NamedTuple):
    row: np.ndarray  # int64 (b,)
    column: np.ndarray  # int64 (b,): of its first token
    used: np.ndarray  # int64 (rows,): tokens in each row


def place(lengths: np.ndarray, row_length: int) -> Places:
    """Captions into rows, longest first, each where the least room is left that is enough."""
    count = len(lengths)
    row, column = np.zeros(count, np.int64), np.zeros(count, np.int64)
    free_rows: list[list[int]] = [[] for _ in range(row_length + 1)]  # by the room that they have
    rooms = 0  # bit n: there is a row with room for n more
    used: list[int] = []
    for index, length in zip(
        (order := np.argsort(-lengths, kind="stable")).tolist(),
        lengths[order].tolist(),
        strict=True,
    ):
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            chosen = free_rows[room].pop()
            if not free_rows[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = row_length, len(used)
            used.append(0)
        row[index], column[index] = chosen, used[chosen]
        used[chosen] += length
        left = room - length
        if left:
            free_rows[left].append(chosen)
            rooms |= 1 << left
    return Places(row, column, np.array(used, np.int64))


def rows_for(lengths: np.ndarray, batch_size: int, row_length: int) -> int:
    """Rows that hold a batch of captions as long as these are: mean + 4 sigma of its tokens.

    Sigma has the error of the mean in it, which comes from these captions being few. At most one
    row a caption.
    """
    spread = lengths.std() * math.sqrt(batch_size * (1 + batch_size / len(lengths)))
    tokens = min(batch_size * lengths.mean() + SIGMAS * spread, batch_size * lengths.max())
    rng = np.random.default_rng(0)  # a size, once chosen, is the same in a resumed run
    trials = (_batch_of(tokens, lengths, batch_size, rng) for _ in range(_TRIALS))
    return min(batch_size, max(len(place(trial, row_length).used) for trial in trials))


def _batch_of(
    tokens: float, lengths: np.ndarray, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """A batch drawn from `lengths` whose captions are exchanged for longer ones until it has so many tokens."""
    trial = rng.choice(lengths, batch_size)
    while (missing := tokens - trial.sum()) > 0:
        other = rng.choice(lengths, batch_size)
        longer = rng.permutation(np.flatnonzero(other > trial))
        # not more than bring it there
        gained = (other - trial)[longer].cumsum()
        some = longer[: 1 + np.searchsorted(gained, missing)]
        trial[some] = other[some]
    return trial


class TextPacker:
    """Packs batches of dense ids into `rows` rows, or as many as there are captions."""

    def __init__(self, rule: PackRule, rows: int) -> None:
        self.rule, self.rows = rule, rows

    def batch(self, images: Tensor, texts: Tensor) -> Batch:
        """`Batch(images, texts)` with its captions packed."""
        return Batch(images, self(texts))

    def shapes(self, count: int, length: int) -> PackedText:
        """What `count` captions become, of `length` tokens at most, on the meta device."""
        segments = (count + self.rows + 1,)
        return PackedText(
            ids=torch.empty(self.rows, length, dtype=torch.int64, device="meta"),
            positions=torch.empty(self.rows, length, dtype=torch.int64, device="meta"),
            cu_seqlens=torch.empty(segments, dtype=torch.int32, device="meta"),
            ends=torch.empty(count, dtype=torch.int64, device="meta"),
        )

    def __call__(
        self,
        texts: Tensor,  # int64 (b, L)
    ) -> PackedText:
        ids = texts.numpy()
        count, length = ids.shape
        lengths = self.rule.lengths(ids)
        row, column, used = place(lengths, length)
        rows = self.rows if len(used) <= self.rows else count

        starts = row * length + column
        owner = np.repeat(np.arange(count), lengths)
        positions = np.arange(len(owner)) - np.repeat(lengths.cumsum() - lengths, lengths)
        at = starts[owner] + positions
        packed_ids = np.zeros(rows * length, np.int64)
        packed_ids[at] = ids[owner, positions]

        tails = np.arange(rows) * length  # where the unused end of each row starts
        tails[: len(used)] += used
        # What no caption takes counts from its row's tail on.
        tail_starts = np.repeat(tails, length)
        packed_positions = np.arange(rows * length) - tail_starts
        packed_positions[at] = positions
        segments = np.sort(np.concatenate((starts, tails, [rows * length])))
        return PackedText(
            ids=torch.from_numpy(packed_ids).view(rows, length),
            positions=torch.from_numpy(packed_positions).view(rows, length),
            cu_seqlens=torch.from_numpy(segments.astype(np.int32)),
            ends=torch.from_numpy(starts + lengths - 1),
            dense=texts if self.rule.keep_dense else None,
        )
