"""The peak of a fresh process: what the losses need beyond their inputs, and what the reference needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Peaks in MiB: with the inputs made, and after forward and backward. VmHWM counts from the start of
# the process, so that a warm-up with few rows comes first.
SCRIPT = """
import sys
import torch
from torch.nn.functional import normalize
from tests.kernels.parity import load_reference
import fastclip_kernels

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

which, name, rows, width, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
losses = load_reference() if which == "reference" else fastclip_kernels
loss = getattr(losses, name)()
bias = () if name == "ClipLoss" else (torch.tensor(-10.0),)
scale = torch.tensor(14.3, requires_grad=True)

def features(rows):
    return [normalize(torch.randn(rows, width), dim=1).to(getattr(torch, dtype)).requires_grad_() for _ in range(2)]

loss(*features(64), scale, *bias).backward()
inputs = features(rows)
before = peak()
loss(*inputs, scale, *bias).backward()
print(before, peak())
"""


def extra(which: str, name: str, rows: int, dtype: str = "float32", width: int = 512) -> float:
    """MiB of extra peak of one forward and backward, results included."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, which, name, str(rows), str(width), dtype],
        capture_output=True, text=True, check=True, timeout=1800,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    before, after = map(float, run.stdout.split())
    return after - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_extra_memory_grows_with_the_batch_not_with_its_square(name):
    small, large = extra("ours", name, 2048, width=64), extra("ours", name, 16384, width=64)
    print(f"{name}: extra peak {small:.0f} MiB at 2,048, {large:.0f} MiB at 16,384")
    logits = 4 * 16384**2 / 2**20
    # features' gradients and sums are 14 MiB; 256 chunks that settle one by one would be 160
    assert large - small < 0.05 * logits


@pytest.mark.slow  # a minute of GEMMs
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_at_32768_rows_a_small_part_of_what_the_reference_needs(name):
    at_8192 = extra("reference", name, 8192)
    of_reference = at_8192 * 16  # it holds matrices of B x B
    ours = extra("ours", name, 32768)
    print(f"{name}: reference {at_8192:.0f} MiB at 8,192, so {of_reference:.0f} MiB at 32,768;"
          f" ours {ours:.0f} MiB: {ours / of_reference:.2%}")  # fmt: skip
    assert ours <= 0.03 * of_reference
