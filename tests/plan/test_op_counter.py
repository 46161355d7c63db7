"""Bytes, FLOPs and the peak of a few operations that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastclip.plan.op_counter import OpCounter

N = 1000  # numbers of 4 bytes


def test_bytes_are_those_read_and_written() -> None:
    x = torch.ones(N)
    with OpCounter([x]) as counter:
        y = x + x  # two in, one out
        y.mul_(2)  # one in, one out
        x[: N // 2].view(10, -1)  # nothing
    assert counter.tally.passes == 4 * N * (3 + 2)
    assert counter.tally.operations == 2


def test_an_optimiser_is_counted_apart() -> None:
    parameter = nn.Parameter(torch.ones(N))
    parameter.grad = torch.ones(N)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.step()
    with OpCounter([parameter]) as counter:
        optimizer.step()
    assert counter.tally.passes == 0
    # four tensors in and three out; the gradients may count as written, for torch declares them so
    assert 7 <= counter.tally.update / (4 * N) < 8.1


def test_the_peak_is_of_what_is_alive_together() -> None:
    given = torch.ones(N)
    with OpCounter([given]) as counter:
        first = given + 1
        del first
        second, third = given + 2, given + 3
        view = second[1:]
        del second
        fourth = view * 1  # with `given`, `second` under its view, and `third`
        del view, third, fourth
        _ = given + 4
    assert counter.tally.peak == 4 * (4 * N - 1)


@pytest.mark.parametrize("bias", [True, False])
def test_flops_are_those_of_torchs_counter(bias: bool) -> None:
    layers = nn.Sequential(nn.Linear(7, 11, bias), nn.Linear(11, 3, bias))

    def step() -> None:
        layers(torch.ones(5, 7)).sum().backward()

    with FlopCounterMode(display=False) as theirs:
        step()
    with OpCounter([]) as ours:
        step()
    assert ours.tally.flops("products") == theirs.get_total_flops() > 0
    # two layers forward; backward both weights and the input of the second
    by_hand = 2 * 5 * (7 * 11 + 11 * 3) * 2 + 2 * 5 * 11 * 3
    assert ours.tally.flops("products") == by_hand
