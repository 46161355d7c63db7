"""Which implementation of an op runs: the one that was named, or the best one there is.

Only `"auto"` may choose. A backend asked for by name never falls back to another: it raises
`BackendUnavailable` with the reason.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple, get_args

import torch

BackendName = Literal["auto", "triton", "torch"]


class Backend(Enum):
    TORCH = "torch"


class Choice(NamedTuple):
    backend: Backend
    reason: str  # one clause for a log line: why this backend


class BackendUnavailable(RuntimeError):
    """The backend that was asked for by name cannot run here; the message says why."""


def resolve(op: str, backend: str, device: torch.device | None = None) -> Choice:
    """The backend that runs `op` for tensors on `device` (None: not known yet), and why.

    Raises ValueError for a name that does not exist, BackendUnavailable for one that cannot run.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"{op}: backend must be one of {get_args(BackendName)}, got {backend!r}")
    if backend == "triton":
        where = "" if device is None or device.type == "cuda" else f"; features on {device} besides"
        raise BackendUnavailable(
            f"{op}: backend='triton' cannot run: this version of fastclip-kernels has no Triton"
            f" form of it{where}. Use backend='torch' or 'auto'"
        )
    if backend == "torch":
        return Choice(Backend.TORCH, "asked for by name")
    return Choice(Backend.TORCH, "the only form in this version")
