"""How fast a device computes and sends: from the data sheet with assumed shares, or as a file says it was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastclip.config.cluster import ClusterConfig
from fastclip.plan.chips import Chip
from fastclip.plan.figure import Figure
from fastclip.plan.measured_file import MeasuredRates


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Per rank. Of passes the bytes are those of operations that run one by one."""

    products: Figure  # FLOP/s
    attention: Figure  # FLOP/s
    passes: Figure  # bytes/s
    update: Figure  # bytes/s
    allreduce: Figure  # bytes/s that one rank sends while all do: bus bandwidth
    per_operation: Figure  # seconds of the host
    per_collective: Figure  # seconds before the first byte arrives
    loader: Figure | None  # samples/s; None: not known
    asynchronous: bool  # the host, the device and the network work at the same time


def rates_of_chip(
    chip: Chip, cluster: ClusterConfig, dtype: torch.dtype, *, compiled: bool
) -> Rates:
    """A range each: what is between a data sheet and a run is assumed."""
    sheet = f"data sheet of {chip.name}"
    peak, of_what = chip.peak, f"{chip.peak / 1e12:.0f} TFLOP/s"
    if dtype == torch.float32:
        peak, of_what = chip.peak / 2, f"{chip.peak / 2e12:.0f} TFLOP/s in TF32"
    memory = Figure(
        0.7 * chip.hbm,
        0.9 * chip.hbm,
        f"assumed 70 to 90 % of {chip.hbm / 1e9:,.0f} GB/s, {sheet}",
    )
    # bench.pointwise_bytes, blocks of ViT-B-32-256 and ViT-L-14: what compiled blocks move of what eager ones do
    fused = "; compiled blocks move 0.54 to 0.77 of the bytes, counted by bench.pointwise_bytes"
    passes = memory.times(1 / 0.77, 1 / 0.54, memory.source + fused) if compiled else memory
    inside, (low, high) = chip.link, chip.products
    if (cluster.nodes or 1) == 1:
        allreduce = Figure(0.75 * inside, inside, f"assumed for NVLink of {chip.name}")
    else:
        slowest, fastest = chip.port, min(inside, chip.port * cluster.ranks_per_node)
        gbit = chip.port * 8 / 1e9
        allreduce = Figure(
            0.8 * slowest,
            0.8 * fastest,
            f"assumed 80 % of one {gbit:.0f} Gb/s port a node to one a GPU",
        )
    return Rates(
        products=Figure(
            low * peak,
            high * peak,
            f"assumed {low * 100:.0f} to {high * 100:.0f} % of {of_what}, {sheet}",
        ),
        attention=Figure(0.15 * peak, 0.4 * peak, f"assumed 15 to 40 % of {of_what}, {sheet}"),
        passes=passes,
        update=memory,
        allreduce=allreduce,
        per_operation=Figure(4e-6, 12e-6, "assumed 4 to 12 µs to launch an operation"),
        per_collective=Figure(3e-5, 2e-4, "assumed 30 to 200 µs of latency a collective"),
        loader=None,
        asynchronous=True,
    )


def with_measured(rates: Rates, measured: MeasuredRates) -> Rates:
    """Those rates that the file holds are points, no ranges."""
    found: dict[str, Any] = {
        name: Figure.exactly(value, f"measured ({measured.file})")
        for name, value in measured.rates.items()
    }
    return replace(rates, **found)
