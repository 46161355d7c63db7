"""Model FLOPs utilisation: the arithmetic a step needs, over what the chip could do in that time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastclip.config.train_config import Precision
from fastclip.data.batch import PackedText
from fastclip.model.block import Transformer
from fastclip_kernels.self_attention.sdpa import SDPA

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
    model: nn.Module, image_size: tuple[int, int], texts: Tensor | PackedText
) -> float:
    """FLOPs of forward and backward for one pair: products only, counted on a copy without memory.

    `texts` is a batch of captions as the run has them, on the meta device: only its shapes are looked at. Backward
    needs two products for each one of forward. What checkpointing computes again is not counted: that is time, not
    use.
    """
    shape_only = copy.deepcopy(model).to("meta").eval()
    for module in shape_only.modules():
        if isinstance(module, Transformer):
            module.use_attention(SDPA)  # the counter knows its products, not those of a custom op
    image = torch.empty(1, 3, *image_size, device="meta", dtype=next(model.parameters()).dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(texts, Tensor):
            shape_only(image, texts[:1])
            return 3.0 * counter.get_total_flops()
        shape_only(image=image)
        of_image = counter.get_total_flops()
        shape_only(text=texts)
        of_texts = counter.get_total_flops() - of_image
    return 3 * (of_image + of_texts / len(texts.ends))


def utilisation(
    model: nn.Module, device: torch.device, precision: Precision, texts: Tensor | PackedText
) -> float | None:
    """MFU per (sample/s on this device); None where it is not known."""
    peak = peak_flops(device, precision)
    if peak is None:
        return None
    size = model.visual.preprocess_cfg.size  # type: ignore[union-attr]
    return step_flops_per_sample(model, size, texts) / peak  # type: ignore[arg-type]
