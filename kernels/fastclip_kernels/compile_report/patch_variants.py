"""Variants of the patch embedding's kernels, specialised as Triton does at run time.

The width of the tower is no constant of a kernel: all that is known of it is whether 16 divides it, as it
does in every model of OpenCLIP.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from ..patch_embed import triton_kernels
from ..patch_embed.triton_form import GROUP, Tile, backward_tile, forward_tile
from .build import Argument, Built, compile_kernel
from .variants import TYPES

PATCHES = (14, 16, 32)  # of OpenCLIP's vision transformers
_SIZES = ("D", "picture_stride", "line_stride")


class PatchVariant(NamedTuple):
    kernel: Literal["patches", "patch weights"]  # forward, backward
    dtype: torch.dtype
    patch: int
    arch: str
    kept: bool = False
    divisible: bool = True  # width and strides by 16, as Triton's specialisation asks

    def __str__(self) -> str:
        tile = "x".join(map(str, self.tile[:3]))
        notes = ["", " kept"][self.kept] + ["", " odd"][not self.divisible]
        return (
            f"{self.kernel} of {self.patch} {TYPES[self.dtype]} {tile}"
            f" w{self.tile.warps} s{self.tile.stages}{notes}"
        )

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32

    @property
    def tile(self) -> Tile:
        if self.kernel == "patch weights":
            return backward_tile(self.dtype, self.patch)
        return forward_tile(self.dtype, self.patch, 1024 if self.divisible else 1023)


def selected_patches(arch: str) -> Iterator[PatchVariant]:
    """What a training step in bfloat16 takes, for every patch size."""
    for patch in PATCHES:
        yield PatchVariant("patches", torch.bfloat16, patch, arch)
        yield PatchVariant("patch weights", torch.bfloat16, patch, arch)


def every_patch_variant(arch: str) -> Iterator[PatchVariant]:
    """Of these patch sizes: kept patches, widths and strides that 16 divides and that it does not (both at
    once), and every dtype.
    """
    for first in selected_patches(arch):
        for kept, divisible in itertools.product((False, True), repeat=2):
            yield first._replace(kept=kept, divisible=divisible)
        for dtype in (torch.float16, torch.float32):
            yield first._replace(dtype=dtype)


def compile_patch_variant(variant: PatchVariant) -> Built:
    forward = variant.kernel == "patches"
    kernel = (
        triton_kernels.patch_embed_kernel if forward else triton_kernels.patch_embed_weight_kernel
    )
    constants = {"PATCH": variant.patch, "HAS_KEPT": variant.kept, **variant.tile.constants()}
    if forward:
        constants["GROUP"] = GROUP
    arguments = {name: _argument(name, variant, constants) for name in kernel.arg_names}
    capability = int(variant.arch.removeprefix("sm_"))
    return compile_kernel(kernel, arguments, capability, variant.tile.warps, variant.tile.stages)


def _argument(name: str, variant: PatchVariant, constants: dict[str, int]) -> Argument:
    if name in constants:
        return Argument("constexpr", value=constants[name])
    if name in triton_kernels.COUNTS:
        return Argument("i32")
    if name in _SIZES:
        return Argument("i32", divisible=variant.divisible)
    if name == "kept" and variant.kept:
        return Argument("*i64", divisible=True)
    if name in ("pixels", "kept"):  # without `kept` the pixels stand in for it, and are not read
        return Argument("*u8", divisible=variant.divisible)
    in_product_dtype = name in ("weights", "grad", "out")
    return Argument("*" + (TYPES[variant.dtype] if in_product_dtype else "fp32"), divisible=True)
