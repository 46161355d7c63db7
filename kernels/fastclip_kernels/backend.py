"""Which implementation of an op runs: the one that was named, or the best one there is.

Only `"auto"` may choose. A backend asked for by name never falls back to another: it raises
`BackendUnavailable` with the reason.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, NamedTuple, get_args

import torch

BackendName = Literal["auto", "triton", "torch"]
Backend = Literal["triton", "torch"]


class Choice(NamedTuple):
    backend: Backend
    reason: str  # one clause for a log line: why this backend


class BackendUnavailable(RuntimeError):
    """The backend that was asked for by name cannot run here; the message says why."""


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "") not in ("", "0")


_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def _obstacle(device: torch.device | None, dtype: torch.dtype | None) -> str | None:
    """Why Triton cannot run on such features; None if it can."""
    if not _TRITON_IS_INSTALLED:
        return "triton is not installed"
    if dtype == torch.float64:
        return "it has no float64 form"
    if device is None or interpreting():
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, and the features are on {device}"
    if torch.version.hip is not None:
        return "it was never run on ROCm"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return None


def resolve(
    op: str,
    backend: str,
    device: torch.device | None = None,  # None: not known yet
    dtype: torch.dtype | None = None,  # that features are multiplied in; None: not known yet
) -> Choice:
    """The backend that runs `op`, and why.

    Raises ValueError for a name that does not exist, BackendUnavailable for one that cannot run.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"{op}: backend must be one of {get_args(BackendName)}, got {backend!r}")
    if backend == "torch":
        return Choice("torch", "asked for by name")
    obstacle = _obstacle(device, dtype)
    if backend == "triton":
        if obstacle is not None:
            raise BackendUnavailable(
                f"{op}: backend='triton' cannot run: {obstacle}. Use backend='torch' or 'auto'"
            )
        return Choice("triton", "asked for by name")
    if obstacle is not None:
        return Choice("torch", obstacle)
    if device is not None and device.type != "cuda":
        return Choice("torch", "Triton's interpreter is for tests")
    return Choice("triton", "the features are on a GPU")
