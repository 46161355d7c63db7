"""`patch_embed` beside its reference on the same inputs, and how far apart they may be.

Against the reference in float64 on the same already rounded inputs our error is at most twice the
reference's in the dtype at hand, plus what rounding alone may add where the reference happens to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastclip.model.model_config import load_config, native_models
from fastclip_kernels.patch_embed.reference import patch_embed_reference
from fastclip_kernels.testing import error_against_fp64
from tests.kernels.parity import Comparison

FLOOR = {torch.float64: 1e-12, torch.float32: 1e-7, torch.bfloat16: 1e-4, torch.float16: 1e-5}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def patches_and_widths() -> list[tuple[int, int]]:
    """Every (patch size, width) of the native models."""
    towers = (load_config(name).vision_cfg for name in native_models())
    return sorted({(tower.patch_size, tower.width) for tower in towers})


@dataclass(frozen=True)
class PatchCase:
    patch: int
    width: int
    dtype: torch.dtype  # of the parameters
    autocast: torch.dtype | None = None
    grid: tuple[int, int] = (2, 3)  # patches of a picture: rows, columns
    batch: int = 2
    kept: int | None = None  # patches of each picture
    bias: bool = False
    spare: int = 0  # pixels beyond the last whole patch
    hard: bool = False  # pictures nearly of one colour, gradients nearly the same for all patches
    layout: str = "dense"

    @property
    def precision(self) -> torch.dtype:
        return self.autocast or self.dtype

    def __str__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if v != getattr(PatchCase, k, None)}
        return "-".join(f"{k}={v}".replace("torch.", "") for k, v in shown.items())


class Inputs(NamedTuple):
    pixels: Tensor
    parameters: list[Tensor]  # weight, class token, positions[, bias]; leaves
    constants: dict[str, Any]  # mean, std, kept
    upstream: Tensor


def draw(case: PatchCase, generator: torch.Generator) -> Inputs:
    patch, width, patches = case.patch, case.width, case.grid[0] * case.grid[1]
    size = [case.batch, *(n * patch + case.spare for n in case.grid), 3]
    pixels = torch.randint(0, 256, size, generator=generator)
    tokens = 1 + (case.kept or patches)
    upstream = torch.randn(case.batch, tokens, width, generator=generator)
    if case.hard:
        pixels = 240 + pixels // 16
        upstream = 3 + 0.1 * upstream
    shapes = {"weight": (width, 3, patch, patch), "class": (width,), "pos": (1 + patches, width)}
    shapes |= {"bias": (width,)} if case.bias else {}
    parameters = []
    for name, shape in shapes.items():
        scale = (3 * patch * patch) ** -0.5 if name == "weight" else width**-0.5
        drawn = torch.randn(shape, generator=generator) * scale
        parameters.append(drawn.to(case.dtype).requires_grad_())
    kept = None
    if case.kept is not None:
        kept = torch.rand(case.batch, patches, generator=generator).topk(case.kept).indices
    constants = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD), "kept": kept}
    laid_out = lay_out(pixels.to(torch.uint8), case.layout)
    return Inputs(laid_out, parameters, constants, upstream.to(case.precision))


def lay_out(pixels: Tensor, layout: str) -> Tensor:
    """The same pixels with other strides."""
    match layout:
        case "planes":  # channels before pixels in memory
            return pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        case "cut out":  # of larger pictures and a larger batch
            larger = torch.nn.functional.pad(pixels, (0, 0, 3, 2, 1, 4, 1, 0), value=77)
            return larger[1:, 1:-4, 3:-2]
        case "columns":
            return pixels.transpose(1, 2).contiguous().transpose(1, 2)
    return pixels


def results(
    run: Callable[..., Tensor], inputs: Inputs, parameters: list[Tensor], upstream: Tensor
) -> dict[str, Tensor]:
    bias = parameters[3] if len(parameters) > 3 else None
    tokens = run(inputs.pixels, *parameters[:3], bias=bias, **inputs.constants)
    gradients = torch.autograd.grad(tokens, parameters, upstream)
    names = ("d weight", "d class", "d positions", "d bias")
    return {"tokens": tokens.detach(), **dict(zip(names, gradients, strict=False))}


def compare(case: PatchCase, patch_embed: Callable[..., Tensor], seed: int) -> list[Comparison]:
    """Tokens and every gradient, of the case's dtype; under autocast the reference gets the rounded
    weight, as autocast gives it to a convolution.
    """
    inputs = draw(case, torch.Generator().manual_seed(seed))
    wide = [p.detach().double().requires_grad_() for p in inputs.parameters]
    truth = results(patch_embed_reference, inputs, wide, inputs.upstream.double())

    def reference(pixels: Tensor, weight: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        if options["bias"] is not None:
            options["bias"] = options["bias"].to(case.precision)
        return patch_embed_reference(pixels, weight.to(case.precision), *rest, **options)

    theirs = results(reference, inputs, inputs.parameters, inputs.upstream)
    with torch.autocast("cpu", dtype=case.autocast, enabled=case.autocast is not None):
        ours = results(patch_embed, inputs, inputs.parameters, inputs.upstream)
    found = []
    for what, true in truth.items():
        assert ours[what].dtype == theirs[what].dtype, what
        assert ours[what].shape == true.shape, what
        errors = [error_against_fp64(side[what], true, 1e-6) for side in (ours, theirs)]
        found.append(Comparison(what, *errors, 2 * errors[1] + FLOOR[case.precision]))
    return found


def failures(case: PatchCase, found: list[Comparison]) -> list[str]:
    return [
        f"{case}: {c.what}: error {c.ours:.2e}, reference {c.reference:.2e}, limit {c.limit:.2e}"
        for c in found
        if not c.good
    ]


def ratios(found: list[Comparison]) -> Iterator[float]:
    """Our error over the reference's, where it has one; at least a hundredth, for some are 0."""
    for c in found:
        if c.reference > 0:
            yield max(c.ours / c.reference, 0.01)
