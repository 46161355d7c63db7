"""Model FLOPs utilisation: the arithmetic a step needs, over what the chip could do in that time."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastclip.config.train_config import Precision

# Dense half-precision FLOP/s of the data sheets (without sparsity), by what torch calls the device.
_PEAK_HALF = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """FLOP/s of `device` at this precision's products; None where no data sheet figure is known here."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    # The longest entry that fits: "H100 PCIe" before "H100", "L40S" before "L4".
    fitting = [chip for chip in _PEAK_HALF if chip in name]
    return _PEAK_HALF[max(fitting, key=len)] if fitting else None


def step_flops_per_sample(
    model: nn.Module, image_size: tuple[int, int], context_length: int
) -> int:
    """FLOPs of forward and backward for one pair: products only, counted on a copy without memory.

    Backward needs two products for each one of forward. What checkpointing computes again is not counted: that is
    time, not use.
    """
    shape_only = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, 3, *image_size, device="meta", dtype=next(model.parameters()).dtype)
    text = torch.empty(1, context_length, device="meta", dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape_only(image, text)
    return 3 * counter.get_total_flops()


def utilisation(
    model: nn.Module, device: torch.device, precision: Precision, context_length: int
) -> float | None:
    """MFU per (sample/s on this device); None where it is not known."""
    peak = peak_flops(device, precision)
    if peak is None:
        return None
    size = model.visual.preprocess_cfg.size  # type: ignore[union-attr]
    return step_flops_per_sample(model, size, context_length) / peak  # type: ignore[arg-type]
