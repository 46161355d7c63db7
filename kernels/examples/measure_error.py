"""How far losses and gradients are from float64: these losses and open_clip's, on the same inputs.

python measure_error.py [--rows 1024] [--width 512] [--device cpu]

Needs open_clip_torch 3.3.0 beside fastclip_kernels. Each number is ‖x - x64‖ / max(‖x64‖, floor),
the root mean square over three draws; x64 is open_clip's loss in float64 on the inputs as they are
after rounding. Where open_clip overflows, its number is inf.
"""

from __future__ import annotations

import argparse
import math
import secrets
from typing import NamedTuple

import open_clip.loss
import torch
from torch import Tensor, nn

import fastclip_kernels
from fastclip_kernels.testing import SCALAR_FLOOR, error_against_fp64, feature_floor, unit_features

DRAWS = 3
NUMBERS = ("loss", "d image", "d text", "d scale")


class Case(NamedTuple):
    name: str  # of the class
    inputs: str  # "random", or "trained": a pair has cosine 0.24
    scale: float
    bias: float | None


CASES = (
    Case("ClipLoss", "random", 14.3, None),
    Case("ClipLoss", "random", 100.0, None),
    Case("ClipLoss", "trained", 100.0, None),
    Case("SigLipLoss", "random", 10.0, -10.0),
    Case("SigLipLoss", "trained", 100.0, -10.0),
)
# name, dtype of the features, whether autocast is on in that dtype
PRECISIONS = (
    ("float32", torch.float32, None),
    ("autocast bfloat16", torch.float32, torch.bfloat16),
    ("bfloat16", torch.bfloat16, None),
    ("float16", torch.float16, None),
)


def results(
    loss_of: nn.Module, case: Case, image: Tensor, text: Tensor, autocast: torch.dtype | None
) -> list[Tensor]:
    """NUMBERS, each as the loss gives it."""
    image, text = (x.detach().clone().requires_grad_() for x in (image, text))
    wide = torch.float64 if image.dtype == torch.float64 else torch.float32
    scale = torch.tensor(case.scale, dtype=wide, device=image.device, requires_grad=True)
    bias = None if case.bias is None else torch.tensor(case.bias, dtype=wide, device=image.device)
    with torch.autocast(image.device.type, dtype=autocast, enabled=autocast is not None):
        loss = loss_of(image, text, scale, bias)
    return [loss, *torch.autograd.grad(loss, (image, text, scale))]


def draw(
    case: Case, rows: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    image, text = (unit_features(rows, width, generator, torch.float64) for _ in range(2))
    if case.inputs == "trained":
        text = nn.functional.normalize(image + 4 * text, dim=1)
    return image.to(dtype), text.to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    floors = [SCALAR_FLOOR, *[0.0] * 2, SCALAR_FLOOR]
    print(
        f"seed {options.seed}, {options.rows} x {options.width}, {options.device},"
        f" torch {torch.__version__}; ours / open_clip {open_clip.__version__}\n"
    )
    print("| precision | loss | inputs |", *(f" {number} |" for number in NUMBERS), sep="")
    print("|---" * (3 + len(NUMBERS)), "|", sep="")
    for precision, dtype, autocast in PRECISIONS:
        for case in CASES:
            floors[1] = floors[2] = feature_floor(case.scale, options.rows)
            squares = torch.zeros(2, len(NUMBERS), dtype=torch.float64)
            for _ in range(DRAWS):
                # rounded to what is multiplied, so that x64 sees the same numbers
                pair = draw(case, options.rows, options.width, autocast or dtype, generator)
                image, text = (x.to(options.device, dtype) for x in pair)
                reference = getattr(open_clip.loss, case.name)()
                truth = results(reference, case, image.double(), text.double(), None)
                for i, loss_of in enumerate((getattr(fastclip_kernels, case.name)(), reference)):
                    found = results(loss_of, case, image, text, autocast)
                    squares[i] += torch.tensor(
                        [
                            error_against_fp64(*each) ** 2
                            for each in zip(found, truth, floors, strict=True)
                        ]
                    )
            shown = [
                f" {math.sqrt(ours / DRAWS):.1e} / {math.sqrt(theirs / DRAWS):.1e} |"
                for ours, theirs in squares.T.tolist()
            ]
            print(
                f"| {precision} | {case.name} | {case.inputs}, s = {case.scale:g} |", *shown, sep=""
            )


if __name__ == "__main__":
    main()
