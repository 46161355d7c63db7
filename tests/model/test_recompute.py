"""What is recomputed changes memory and work, never a bit of a gradient."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastclip.model import recompute
from fastclip.model.block import Block
from fastclip.model.recompute import WAYS
from fastclip_kernels.self_attention.sdpa import attend_all, attend_before


def blocks(layers: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, 2, 4.0, None, False, nn.LayerNorm) for _ in range(layers))


def gradients_and_products(kind, stack, x, attend, amp=False):
    """Gradients of input and parameters, and the FLOPs of matrix products in both passes."""
    x = x.clone().requires_grad_()
    stack.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counter:
        out = x
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            for block in stack:
                out = WAYS[kind](block, out, attend, None)
        out.float().square().sum().backward()
    return [x.grad, *(p.grad for p in stack.parameters())], counter.get_total_flops()


@pytest.mark.parametrize("attend", [attend_all, attend_before])
@pytest.mark.parametrize("amp", [False, True])
def test_gradients_are_the_same_bits(attend, amp):
    stack, x = blocks(2, 32), torch.randn(3, 7, 32)
    wanted, _ = gradients_and_products("none", stack, x, attend, amp)
    for kind in ("pointwise", "full"):
        got, _ = gradients_and_products(kind, stack, x, attend, amp)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), kind


def test_pointwise_multiplies_nothing_twice(monkeypatch):
    stack, x = blocks(2, 32), torch.randn(3, 7, 32)
    products = {kind: gradients_and_products(kind, stack, x, attend_all)[1] for kind in WAYS}
    assert products["pointwise"] == products["none"] < products["full"]
    monkeypatch.setattr(recompute, "_KEPT", set())  # the count would see it
    assert gradients_and_products("pointwise", stack, x, attend_all)[1] == products["full"]


def test_without_gradients_nothing_is_kept():
    stack, x = blocks(1, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        outs = [WAYS[kind](stack[0], x, attend_all, None) for kind in WAYS]
    assert all(torch.equal(out, outs[0]) and not out.requires_grad for out in outs)


PEAK = """
import sys
import torch
from tests.model.test_recompute import blocks
from fastclip.model.recompute import WAYS
from fastclip_kernels.self_attention.sdpa import attend_all

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
stack = blocks(12, 128)
def step(rows):
    out = torch.randn(rows, 50, 128, requires_grad=True)
    for block in stack:
        out = WAYS[sys.argv[1]](block, out, attend_all, None)
    out.square().sum().backward()
step(1)
before = peak()
step(128)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_each_way():
    peaks = {}
    for kind in WAYS:
        run = subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True,
                             check=True, env={**os.environ, "PYTHONPATH": ".:kernels"})  # fmt: skip
        peaks[kind] = float(run.stdout)
    print({kind: f"{peak:.0f} MiB" for kind, peak in peaks.items()})
    assert peaks["full"] < peaks["pointwise"] < 0.9 * peaks["none"]
