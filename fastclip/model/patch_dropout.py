"""Leaving out random patches in training (https://arxiv.org/abs/2212.00794)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PatchDropout(nn.Module):
    """Keeps the first (class) token and max(1, int(N * (1 - share))) of the N others, shuffled.

    Draws come from torch's global CPU generator, as the reference's do, until `seed` is called;
    from then on from a generator of its own, so that they are a function of the last seed alone.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._seed: int | None = None
        self._generator: torch.Generator | None = None

    def seed(self, seed: int) -> None:
        """Start a new sequence of draws. Draws on different kinds of device differ."""
        self._seed = seed
        self._generator = None

    def left_of(self, patches: int) -> int:
        """How many of so many patches are kept."""
        return max(1, int(patches * (1 - self.share)))

    def _draw(self, batch: int, patches: int, device: torch.device) -> Tensor:
        count = self.left_of(patches)
        if self._seed is None:
            noise = torch.randn(batch, patches).to(device)
        else:
            if self._generator is None or self._generator.device != device:
                self._generator = torch.Generator(device).manual_seed(self._seed)
            noise = torch.randn(batch, patches, device=device, generator=self._generator)
        return noise.topk(count, dim=-1).indices

    def kept(self, batch: int, patches: int, device: torch.device) -> Tensor | None:
        """A new draw: int64 (B, kept), which of N patches and in which order; None: all, in theirs."""
        return _untraced_draw(self, batch, patches, device) if self.training else None

    def forward(self, x: Tensor) -> Tensor:  # (B, 1 + N, D) -> (B, 1 + kept, D)
        patches = x[:, 1:]
        kept = self.kept(patches.shape[0], patches.shape[1], x.device)
        if kept is None:
            return x
        chosen = patches.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat((x[:, :1], chosen), dim=1)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_generator": None}  # generators can be neither copied nor pickled


class AllPatches(nn.Identity):
    """No patch dropout."""

    def kept(self, batch: int, patches: int, device: torch.device) -> None:
        """None: all patches, in their order."""
        return None


_compiler: Any = torch.compiler
_untraced_draw: Callable[..., Tensor] = _compiler.disable(PatchDropout._draw)  # has a generator
