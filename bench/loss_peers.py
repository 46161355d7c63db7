"""The losses that ours is measured beside, each as `loss(image, text, scale, bias) -> Tensor`.

A peer that is not installed is named with the reason; it is never skipped in silence.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import fastclip_kernels
from bench.paired import in_one_line
from fastclip_kernels.backend import interpreting

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def reference_losses() -> ModuleType:
    """`open_clip/loss.py` alone, without the imports of its package."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ImportError("open_clip_torch is not installed")
    path = Path(package.submodule_search_locations[0], "loss.py")
    spec = importlib.util.spec_from_file_location("reference_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _open_clip(name: str, compiled: bool) -> Loss:
    module = getattr(reference_losses(), name)()
    # a graph of its own for each size: with dynamic shapes it would be slower than it can be
    call = torch.compile(module, dynamic=False) if compiled else module
    if name == "ClipLoss":
        return lambda image, text, scale, bias: call(image, text, scale)
    return lambda image, text, scale, bias: call(image, text, scale, bias)


def _inf_cl() -> Loss:
    from inf_cl import cal_flash_loss

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        to_text: Tensor = cal_flash_loss(image, text, scale=scale).mean()
        to_image: Tensor = cal_flash_loss(text, image, scale=scale).mean()
        return (to_text + to_image) / 2

    return loss


def _memeff() -> Loss:
    from memeff import MemoryEfficientCLIPLoss

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # its temperature is a Python number, and has no gradient
        module = MemoryEfficientCLIPLoss(temperature=1 / float(scale), normalized_inputs=True)
        value: Tensor = module(image, text)
        return value

    return loss


def _siglip_kernel() -> Loss:
    from siglip_kernel import fused_siglip_loss

    def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        value: Tensor = fused_siglip_loss(image, text, scale.log(), bias)
        return value

    return loss


def _best() -> str:
    """The backend under test: what users get, but Triton where its interpreter is asked for."""
    return "triton" if interpreting() else "auto"


def _ours(name: str, backend: str) -> Loss:
    function = getattr(fastclip_kernels, name)
    return lambda image, text, scale, bias: function(image, text, scale, bias, backend=backend)


_CLIP: dict[str, Callable[[], Loss]] = {
    "fastclip": lambda: _ours("clip_loss", _best()),
    "fastclip, torch form": lambda: _ours("clip_loss", "torch"),
    "open_clip": lambda: _open_clip("ClipLoss", compiled=False),
    "open_clip, compiled": lambda: _open_clip("ClipLoss", compiled=True),
    "inf-cl": _inf_cl,
    "memeff": _memeff,
}
_SIGLIP: dict[str, Callable[[], Loss]] = {
    "fastclip": lambda: _ours("siglip_loss", _best()),
    "fastclip, torch form": lambda: _ours("siglip_loss", "torch"),
    "open_clip": lambda: _open_clip("SigLipLoss", compiled=False),
    "open_clip, compiled": lambda: _open_clip("SigLipLoss", compiled=True),
    "siglip-kernel": _siglip_kernel,
}


def peers(kind: str, *, compiled: bool) -> tuple[dict[str, Loss], dict[str, str]]:
    """(losses by name, reasons of those that are missing); `kind` is "clip" or "siglip".

    What torch.compile makes of the reference is left out where not asked for: it takes a minute.
    """
    found: dict[str, Loss] = {}
    missing: dict[str, str] = {}
    for name, make in {"clip": _CLIP, "siglip": _SIGLIP}[kind].items():
        if "compiled" in name and not compiled:
            missing[name] = "not asked for"
            continue
        try:
            found[name] = make()
        except Exception as error:  # an installed peer may fail to import without a GPU
            missing[name] = in_one_line(error)
    return found, missing
