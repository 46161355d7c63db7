"""What a tower calls: attention as plain callables, chosen once and then called without a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Attend(Protocol):
    """Mixes values by queries and keys; which token sees which is the implementation's."""

    def __call__(
        self,
        q: Tensor,  # (B, T, H, D / H), as k, v and the result
        k: Tensor,
        v: Tensor,
    ) -> Tensor: ...


class Segments(Protocol):
    """Where captions lie in a packed buffer of R rows of L tokens: each whole in one row, and what is
    left of a row a segment of its own.
    """

    @property
    def positions(self) -> Tensor:
        """integers (R, L): place of each token in its segment, from 0."""
        ...

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 (segments + 1,): where each segment starts in the R * L tokens; then R * L."""
        ...


# Called once a batch; the result serves all layers. A token sees itself and what precedes it in its segment.
PackedAttention = Callable[[Segments], Attend]


class TowerAttention(NamedTuple):
    """All that a tower may need."""

    full: Attend  # every token sees every token
    causal: Attend  # a token sees itself and the tokens before it
    packed: PackedAttention
