"""Captions of a batch end to end in one buffer, as a text tower reads them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from fastclip_kernels.self_attention.kinds import Attend


class PackedIds(Protocol):
    """R rows of L tokens hold b captions, each whole in one row and cut after its end of text.

    What is left of a row, maybe nothing, is a segment of its own, so that nothing sees it: there
    are b + R segments, none longer than L.
    """

    @property
    def ids(self) -> Tensor:
        """int64 (R, L)."""
        ...

    @property
    def positions(self) -> Tensor:
        """int64 (R, L): place of each token in its segment, from 0."""
        ...

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (b + R + 1,): where each segment starts in the R * L tokens; then R * L."""
        ...

    @property
    def ends(self) -> Tensor:
        """int64 (b,): where in the R * L tokens caption i has its end of text."""
        ...


class PackedRows(NamedTuple):
    """The end-of-text rows of a packed buffer (`pooled_rows.PooledRows`)."""

    ends: Tensor  # int64 (b,)
    attend_buffer: Attend

    def pick(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.ends)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # In their places in a buffer of queries, so that the buffer's own attention does it: that
        # is cheaper than to unpack keys and values. Products with weights are what pruning saves.
        buffer = q.new_zeros(k.shape[0] * k.shape[1], *k.shape[2:])
        queries = buffer.index_copy(0, self.ends, q).view(k.shape)
        return self.pick(self.attend_buffer(queries, k, v))
