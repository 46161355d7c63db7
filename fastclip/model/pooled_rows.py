"""The one row of each sample that a tower reads at its end, and what that row sees of the others.

The last block computes keys and values of all rows and everything else for these rows only
(`Block.forward`): what the other rows would have become is never read.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastclip_kernels.self_attention.sdpa import scaled_dot_product


class PooledRows(Protocol):
    """Which rows, b in all."""

    def pick(self, x: Tensor) -> Tensor:
        """Those rows of x (B, T, ...): (b, ...)."""
        ...

    def attend(
        self,
        q: Tensor,  # (b, H, D / H), as the result
        k: Tensor,  # (B, T, H, D / H), as v
        v: Tensor,
    ) -> Tensor:
        """Attention of those rows over the rows that they see."""
        ...


class FirstRow(NamedTuple):
    """Row 0 of each sample: the class token, or a text's first."""

    causal: bool  # then row 0 sees only itself

    def pick(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = slice(1) if self.causal else slice(None)
        return scaled_dot_product(q[:, None], k[:, seen], v[:, seen])[:, 0]


class LastRow(NamedTuple):
    """The last row of each sample, which sees all, causal or not."""

    def pick(self, x: Tensor) -> Tensor:
        return x[:, -1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product(q[:, None], k, v)[:, 0]


class RowAt(NamedTuple):
    """A row of its own in each sample: the end-of-text token."""

    position: Tensor  # int64 (B,)
    causal: bool  # then the row sees itself and those before it

    def pick(self, x: Tensor) -> Tensor:
        return x[torch.arange(x.shape[0], device=x.device), self.position]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if self.causal:
            seen = torch.arange(k.shape[1], device=k.device) <= self.position[:, None]  # (B, T)
            mask = seen[:, None, None, :]
        return scaled_dot_product(q[:, None], k, v, mask=mask)[:, 0]
