"""What each `--precision` means at run time."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch.amp import GradScaler

from fastclip.config.train_config import Precision

AutocastFactory = Callable[[], AbstractContextManager[None]]

_AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}
_INPUT = {
    "fp16": torch.float16,
    "pure_fp16": torch.float16,
    "bf16": torch.bfloat16,
    "pure_bf16": torch.bfloat16,
}


def autocast_factory(precision: Precision, device: torch.device) -> AutocastFactory:
    """A callable that opens the run's autocast context (or an empty one)."""
    dtype = _AUTOCAST.get(precision)
    if dtype is None:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=dtype)


def input_dtype(precision: Precision) -> torch.dtype:
    """The dtype that float pictures are cast to before the model."""
    return _INPUT.get(precision, torch.float32)


def product_dtype(precision: Precision) -> torch.dtype:
    """The dtype in which the towers multiply."""
    return _AUTOCAST.get(precision) or input_dtype(precision)


def make_scaler(precision: Precision, device: torch.device) -> GradScaler | None:
    """Loss scaling is used for fp16 autocast only, as in the reference."""
    return GradScaler(device.type) if precision == "amp" else None


def set_backend_precision(device: torch.device, *, deterministic: bool) -> None:
    """What the reference sets on CUDA: TF32 products for what stays fp32, and cuDNN's search for the fastest.

    Through the call that leaves torch's older and newer readers of this setting consistent: after setting
    `fp32_precision` itself, reading `allow_tf32` (as parts of torch.compile do) raises on torch 2.14.
    `deterministic` (ours) makes torch refuse every operation whose result varies from run to run.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it for this
        torch.use_deterministic_algorithms(True)
