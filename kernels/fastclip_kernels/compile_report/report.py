"""Compiles, models, and says which bars are met."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from ..loss.triton_table import Launch
from .build import Built
from .chips import CHIPS
from .losses import LOSSES, Estimate, estimate
from .patch_variants import (
    PatchVariant,
    compile_patch_variant,
    every_patch_variant,
    selected_patches,
)
from .pointwise import compiled as compiled_pointwise
from .public import PUBLISHED, Prediction, compile_public, predict
from .variants import Variant, compile_variant, every, selected

RATIO = 1.5  # of the floor, for the two shapes of `LOSSES`
PROCESSES = 2


class Report(NamedTuple):
    built: dict[Variant | PatchVariant, Built]
    pointwise: dict[str, Built]  # by chip, kernel and dtype
    predictions: list[Prediction]
    estimates: dict[str, list[Estimate]]  # by chip
    failures: list[str]  # one line for each bar that is not met


def make_report(
    archs: list[str], *, all_variants: bool, launch: Launch | None = None, only: str | None = None
) -> Report:
    """`launch` in place of what the table chooses for bfloat16, in the form `only` or in all; nothing is
    modelled then.
    """
    variants = [v for arch in archs for v in (every(arch) if all_variants else selected(arch))]
    of_patches = every_patch_variant if all_variants else selected_patches
    patch_variants = [v for arch in archs for v in of_patches(arch)]
    if launch is not None:
        variants = [v._replace(launch=launch) for v in variants if v.dtype == torch.bfloat16]
        variants = [v for v in variants if only in (None, v.form)]
        patch_variants = []
    chosen: list[Variant | PatchVariant] = [*variants, *patch_variants]
    wanted: list[Variant | PatchVariant | tuple[str, str]] = [*chosen]
    if launch is None:
        wanted += dict.fromkeys((p.kernel, p.arch) for p in PUBLISHED if p.arch in archs)
    # fresh processes: a fork of one that has threads may hang
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        made = dict(zip(wanted, pool.map(_compile, wanted), strict=True))
    built = {variant: made[variant] for variant in chosen}
    pointwise: dict[str, Built] = {}
    predictions: list[Prediction] = []
    estimates: dict[str, list[Estimate]] = {}
    if launch is None:
        pointwise = dict(compiled_pointwise(archs))
        predictions = [predict(p, made[p.kernel, p.arch]) for p in PUBLISHED if p.arch in archs]
        for arch in archs:
            estimates[arch] = [
                estimate(loss, CHIPS[arch], arch, torch.bfloat16, built.__getitem__)
                for loss in LOSSES
            ]
    failures = [line for v, b in built.items() for line in broken(v, b)]
    failures += [
        f"{n}: {b.spills} local loads and stores" for n, b in pointwise.items() if b.spills
    ]
    failures += [
        f"{p.published.arch} {p.published.kernel}: predicted {p.ratio:.2f} of the published time"
        for p in predictions
        if not p.within and p.published.chip_named
    ]
    failures += [
        f"{arch} {e.loss}: {e.ratio:.2f} of the floor, more than {RATIO}"
        for arch, found in estimates.items()
        for e in found
        if e.ratio > RATIO
    ]
    return Report(built, pointwise, predictions, estimates, failures)


def _compile(what: Variant | PatchVariant | tuple[str, str]) -> Built:
    if isinstance(what, PatchVariant):
        return compile_patch_variant(what)
    return compile_variant(what) if isinstance(what, Variant) else compile_public(*what)


def broken(variant: Variant | PatchVariant, built: Built) -> Iterator[str]:
    """The bars that a variant misses."""
    chip = CHIPS[variant.arch]
    if variant.half and built.spills:
        yield f"{variant.arch} {variant}: {built.spills} local loads and stores"
    if built.shared > chip.block_shared:
        yield f"{variant.arch} {variant}: {built.shared} bytes of shared memory of {chip.block_shared}"
    if variant.half and not built.products:
        yield f"{variant.arch} {variant}: a matrix product without tensor cores"


def as_json(report: Report) -> dict[str, Any]:
    return {
        "variants": [
            {
                "arch": v.arch,
                "variant": str(v),
                "registers": b.registers,
                "spills": b.spills,
                "shared_bytes": b.shared,
                "resident_blocks": CHIPS[v.arch].resident(b.registers, b.warps, b.shared),
                "tensor_instructions": b.products,
                "instructions": dict(b.code.counts.most_common()),
                "per_warp_in_loop": b.code.inside._asdict(),
                "per_warp_outside": b.code.outside._asdict(),
            }
            for v, b in report.built.items()
        ],
        "pointwise": [
            {"kernel": name, "registers": b.registers, "spills": b.spills, "shared_bytes": b.shared}
            for name, b in report.pointwise.items()
        ],
        "public": [
            {
                **p.published._asdict(),
                "predicted_seconds": p.modelled.seconds,
                "ratio": p.ratio,
                "within_25_percent": p.within,
            }
            for p in report.predictions
        ],
        "losses": [
            {"arch": arch, **e._asdict(), "seconds": e.seconds, "ratio": e.ratio}
            for arch, found in report.estimates.items()
            for e in found
        ],
        "failures": report.failures,
    }


def as_text(report: Report) -> Iterator[str]:
    yield f"{'variant':<58} {'regs':>5} {'spills':>6} {'shared':>7} {'blocks':>6} {'tensor':>6}"
    for v, b in report.built.items():
        resident = CHIPS[v.arch].resident(b.registers, b.warps, b.shared)
        yield (
            f"{v.arch + ' ' + str(v):<58} {b.registers:>5} {b.spills:>6} {b.shared:>7}"
            f" {resident:>6} {b.products:>6}"
        )
    for name, b in report.pointwise.items():
        yield f"{name:<58} {b.registers:>5} {b.spills:>6} {b.shared:>7}"
    for p in report.predictions:
        named = (
            "" if p.published.chip_named else "; the page names no chip, an A100 40 GB is assumed"
        )
        verdict = "within" if p.within else "NOT within"
        yield (
            f"\nmodel of a public {p.published.kernel} on {CHIPS[p.published.arch].name}:"
            f" {p.ratio:.2f} of the published time, {verdict} 25 %"
        )
        yield f"  {p.published.figure} ({p.published.source}){named}"
    for arch, found in report.estimates.items():
        unproven = not any(p.published.arch == arch for p in report.predictions)
        yield f"\n{CHIPS[arch].name}, bf16, forward and backward, milliseconds" + (
            "; the model is unproven on this chip: no published figure was found"
            if unproven
            else ""
        )
        for e in found:
            parts = " + ".join(
                f"{name} {1e3 * value:.3f}"
                for name, value in (
                    ("forward", e.forward),
                    ("backward", e.backward),
                    ("vendor", e.vendor),
                    ("passes", e.passes),
                )
            )
            yield (
                f"  {e.loss:<22} {1e3 * e.seconds:.3f} = {parts}; floor {1e3 * e.floor:.3f},"
                f" ratio {e.ratio:.2f}; with nothing overlapped {e.serial / e.floor:.2f}"
            )
            yield "    bound by " + ", ".join(
                f"{form}: {pipe}" for form, pipe in e.bound_by.items()
            )
    yield ""
    yield from report.failures or ["every bar is met"]
