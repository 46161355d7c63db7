"""The implementation of a chunk of logits, by the backend's name."""

from __future__ import annotations

import torch

from .sweeps import Chunks
from .torch_chunks import TorchChunks


def make_chunks(backend: str, device: torch.device, dtype: torch.dtype) -> Chunks:
    """`backend` as `backend.resolve` chose it; `dtype` is that features are multiplied in."""
    if backend == "triton":
        from .triton_chunks import TritonChunks  # imports triton, which not every platform has

        return TritonChunks(device, dtype)
    return TorchChunks(device, dtype)
