"""Patch embedding, attention and the bias sums on one device, beside plain torch: are they right?

    python -m bench.kernels_on_device --out results [--toy]

Each against its formula in float64 on the same rounded inputs; ours may have twice the error of plain torch in that
dtype, plus rounding. Writes kernels_on_device.json; exit status 1 where a result of ours is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.correctness import ALLOWANCE, with_gradients
from bench.machine import machine, write
from bench.paired import reason
from fastclip_kernels import attention, patch_embed
from fastclip_kernels.backend import interpreting
from fastclip_kernels.testing import error_against_fp64

MEAN, STD = torch.tensor([0.481, 0.458, 0.408]), torch.tensor([0.269, 0.261, 0.276])

Form = Callable[..., Tensor]


def draw(
    generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int
) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


def cases(
    device: torch.device, dtype: torch.dtype, *, toy: bool
) -> Iterator[tuple[str, Form, Form, list[Tensor]]]:
    """(name, ours, plain torch, inputs)."""
    generator = torch.Generator().manual_seed(0)
    triton = interpreting() or device.type == "cuda"
    backend: Any = "triton" if triton else "torch"
    grids = [(32, 64, 2, 2)] if toy else [(32, 768, 8, 64), (16, 1024, 14, 8), (14, 1280, 16, 8)]
    for patch, width, side, batch in grids:
        pixels = torch.randint(0, 256, (batch, side * patch, side * patch, 3), dtype=torch.uint8,
                               generator=generator).to(device)  # fmt: skip
        mean, std = MEAN.to(device), STD.to(device)

        def ours(weight: Tensor, token: Tensor, table: Tensor, pixels: Tensor = pixels) -> Tensor:
            return patch_embed(pixels, weight, token, table, mean=MEAN, std=STD, backend=backend)

        def plain(
            weight: Tensor, token: Tensor, table: Tensor,
            pixels: Tensor = pixels, patch: int = patch, mean: Tensor = mean, std: Tensor = std,
        ) -> Tensor:  # fmt: skip
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            x = (pixels.to(wide) / 255 - mean.to(wide)) / std.to(wide)
            x = F.conv2d(x.permute(0, 3, 1, 2).to(weight.dtype), weight, stride=patch)
            x = x.flatten(2).transpose(1, 2)
            return torch.cat((token.expand(len(x), 1, -1), x), dim=1) + table

        shapes = [(width, 3, patch, patch), (width,), (1 + side * side, width)]
        yield (f"patch embedding {patch}, {width}", ours, plain,
               [draw(generator, device, dtype, *shape) * shape[-1] ** -0.5 for shape in shapes])  # fmt: skip

    b, t, heads, w = (2, 9, 2, 16) if toy else (64, 65, 12, 64)
    starts = torch.tensor([0, 4, t, t + 2, 2 * t], dtype=torch.int32, device=device)
    qkv = [draw(generator, device, dtype, b, t, heads, w) for _ in range(3)]
    two = [each[:2].contiguous() for each in qkv]

    def formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        scores = torch.einsum("bqhw,bkhw->bhqk", q, k) * q.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return torch.einsum("bhqk,bkhw->bqhw", scores.softmax(-1), v)

    causal = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    cuts = torch.stack([torch.arange(t) >= 4, torch.arange(t) >= 2]).to(device)
    segments = (cuts[:, None, :, None] == cuts[:, None, None, :]) & causal
    for name, seen, options, given in (
        ("full", None, {}, qkv),
        ("causal", causal, {"causal": True}, qkv),
        ("packed", segments, {"causal": True, "cu_seqlens": starts}, two),
    ):

        def attend(q: Tensor, k: Tensor, v: Tensor, options: Any = options) -> Tensor:
            return attention(q, k, v, **options)

        def plainly(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = seen) -> Tensor:
            return formula(q, k, v, seen)

        yield f"attention, {name}", attend, plainly, given

    if triton:
        pointwise = importlib.import_module("fastclip_kernels.pointwise")
        rows, hidden = (37, 64) if toy else (4160, 3072)
        x, bias = (
            draw(generator, device, dtype, 1, rows, hidden),
            draw(generator, device, dtype, hidden),
        )
        for quick in (False, True):

            def activated(x: Tensor, bias: Tensor, quick: bool = quick) -> Tensor:
                return pointwise.activation_after_bias(x + bias.detach(), bias, quick=quick)

            def by_torch(x: Tensor, bias: Tensor, quick: bool = quick) -> Tensor:
                x = x + bias
                return x * torch.sigmoid(1.702 * x) if quick else F.gelu(x)

            yield (
                f"{'QuickGELU' if quick else 'GELU'} with the bias's sum",
                activated,
                by_torch,
                [x, bias],
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels_on_device.json")
    parser.add_argument("--toy", action="store_true", help="small sizes, for any machine")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.toy and device.type != "cuda":
        print("there is no GPU here: pass --toy for a small run on the CPU", file=sys.stderr)
        return 2
    found, good = [], True
    for dtype, allowance in ALLOWANCE.items():
        for name, ours, plain, inputs in cases(device, dtype, toy=options.toy):
            given = {str(place): each for place, each in enumerate(inputs)}
            wide = {name: each.double() for name, each in given.items()}
            truth = with_gradients(plain, wide)
            errors: dict[str, Any] = {}
            for who, form in (("fastclip", ours), ("torch", plain)):
                try:
                    got = with_gradients(form, given)
                    errors[who] = [
                        error_against_fp64(got[what], truth[what], 1e-6) for what in truth
                    ]
                except Exception as error:  # what fails is a result too, and the others go on
                    errors[who] = reason(error)
            right = isinstance(errors["fastclip"], list) and all(
                mine <= 2 * theirs + 2 * allowance
                for mine, theirs in zip(errors["fastclip"], errors["torch"], strict=True)
            )
            good &= right
            shown = "right" if right else f"WRONG: {errors['fastclip']}, torch {errors['torch']}"
            print(f"{name} {dtype}: {shown}", flush=True)
            found.append({"case": name, "dtype": str(dtype), "errors": errors, "right": right})
            write(
                options.out / "kernels_on_device.json", {"machine": machine(device), "cases": found}
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
