"""The kernel variants that the selection table can choose, specialised as Triton does at run time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ..loss import triton_kernels
from ..loss.triton_table import Kernel, Launch, launch_for
from .build import Argument, Built, compile_kernel

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_FEATURES = ("queries", "keys", "chunk")
_SIZES = ("K", "D", "query_stride", "key_stride", "chunk_stride")


class Form(NamedTuple):
    """A kernel with its flags, as the sweeps call it."""

    name: str
    kernel: str
    flags: dict[str, bool]

    @property
    def kind(self) -> Kernel:
        kinds: dict[str, Kernel] = {
            "softmax_sums_kernel": "sums",
            "softmax_coefficients_kernel": "coefficients",
            "sigmoid_kernel": "sigmoid",
        }
        return kinds[self.kernel]

    @property
    def stores_chunk(self) -> bool:
        return "coefficients" in self.kernel or self.flags.get("SLOPES", False)


FORMS = {
    form.name: form
    for form in (
        # both softmaxes of a square, without the derivative by the scale; and one of a rank's rows
        Form("sums both ways", "softmax_sums_kernel", {"BOTH_WAYS": True, "MOMENT": False}),
        Form("sums of rows", "softmax_sums_kernel", {"BOTH_WAYS": False, "MOMENT": True}),
        Form("coefficients both ways", "softmax_coefficients_kernel", {"BOTH_WAYS": True}),
        Form("coefficients of rows", "softmax_coefficients_kernel", {"BOTH_WAYS": False}),
        Form("sigmoid sums", "sigmoid_kernel", {"SLOPES": False}),
        Form("sigmoid slopes", "sigmoid_kernel", {"SLOPES": True}),
    )
}


class Variant(NamedTuple):
    form: str
    dtype: torch.dtype
    launch: Launch
    arch: str
    divisible: bool = True  # the number of keys by 16, as Triton's specialisation asks
    one_key: bool = False  # K = 1 becomes a constant

    def __str__(self) -> str:
        tile = "x".join(map(str, self.launch[:3]))
        notes = ["", " odd"][not self.divisible] + ["", " one key"][self.one_key]
        return f"{self.form} {TYPES[self.dtype]} {tile} w{self.launch.warps} s{self.launch.stages}{notes}"

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32


def selected(arch: str, widths: tuple[int, ...] = (512,), keys: int = 1 << 15) -> Iterator[Variant]:
    """What the table chooses for features of these widths and so many keys."""
    capability = int(arch.removeprefix("sm_"))
    seen = set()
    for dtype, form, width in itertools.product(TYPES, FORMS, widths):
        launch = launch_for(dtype, width, kernel=FORMS[form].kind, keys=keys, capability=capability)
        variant = Variant(form, dtype, launch, arch)._replace(
            divisible=keys % 16 == 0, one_key=keys == 1
        )
        if variant not in seen:
            seen.add(variant)
            yield variant


def every(arch: str) -> Iterator[Variant]:
    """All that the table can choose: any width, any number of keys."""
    seen = set()
    for keys in (1 << 15, (1 << 15) + 1, 16, 17, 1):
        for variant in selected(arch, (512, 80), keys):
            if variant not in seen:
                seen.add(variant)
                yield variant


def compile_variant(variant: Variant) -> Built:
    form, launch = FORMS[variant.form], variant.launch
    kernel: Any = getattr(triton_kernels, form.kernel)
    constants = {**launch.constants(not variant.half), **form.flags}
    arguments = {name: _argument(name, variant, constants) for name in kernel.arg_names}
    return compile_kernel(
        kernel, arguments, int(variant.arch.removeprefix("sm_")), launch.warps, launch.stages
    )


def _argument(name: str, variant: Variant, constants: dict[str, Any]) -> Argument:
    if name in constants:
        return Argument("constexpr", value=constants[name])
    if name == "K" and variant.one_key:
        return Argument("constexpr", value=1)
    if name in _FEATURES:  # torch's allocations, and rows that `_padded` aligns
        return Argument("*" + TYPES[variant.dtype], divisible=True)
    if name in triton_kernels.ROWS:
        return Argument("i32")
    if name in _SIZES:
        # feature strides and widths are padded to a block's; numbers of rows are what they are
        always = name in ("D", "query_stride", "key_stride")
        return Argument("i32", divisible=always or variant.divisible)
    if name == "lift":
        return Argument("fp32")
    return Argument("*fp32", divisible=True)
