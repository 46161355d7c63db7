"""The scaling model: from counted work and rates to the time of a step. All of its assumptions are here.

1. Compute is the sum of its parts: products, attention and the loss by FLOPs, all other passes by bytes, and the
   optimiser's update by bytes. Nothing of it overlaps with anything else of it.
2. The backward pass is 2/3 of compute without the update (two products for each one of forward), 3/4 under
   --recompute full, which runs forward once more within it.
3. Gradients are all-reduced in buckets in the order in which backward makes them. A device that computes and sends
   at the same time hides their transfer behind backward, except for the last bucket, which is complete only when
   backward ends; what takes longer than backward is waited for. Computing is not slowed by sending.
4. Image features travel while the text tower runs, for free. All other collectives of the loss are waited for.
5. A collective takes its latency, and then its bytes on the wire at the bus bandwidth, which is that of the slowest
   link and the same at any number of nodes: stragglers and a busy network are not in it.
6. The host launches one operation after the other. Where the device works asynchronously, a step takes at least that
   long; on a CPU it is added.
7. The loader works beside the step; a step takes at least as long as its batches do. Unknown, it is left out.
8. Evaluation, checkpoints, the first steps of a run and its restarts are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastclip.plan.figure import Figure
from fastclip.plan.rates import Rates
from fastclip.plan.traffic import BUCKET_BYTES, Transfer

Limit = Literal["compute", "all-reduce", "host", "loader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Of one rank in one step."""

    products: float  # FLOPs, the loss's too
    attention: float  # FLOPs
    passes: float  # bytes
    update: float  # bytes
    operations: int
    samples: int
    recomputes_all: bool
    ranks: int
    gradients: int  # bytes, as they travel
    transfers: Sequence[Transfer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of one step at one end of the rates."""

    products: float
    attention: float
    passes: float
    update: float
    host: float
    gradients: float  # their all-reduce, hidden or not
    waits_for_gradients: float
    waits_for_loss: float  # its collectives
    loader: float
    step: float
    limit: Limit


def at_both_ends(work: Work, rates: Rates) -> tuple[Times, Times]:
    """With every rate at its best, and every rate at its worst."""
    return _times(work, rates, fast=True), _times(work, rates, fast=False)


def _times(work: Work, rates: Rates, *, fast: bool) -> Times:
    def seconds(amount: float, rate: Figure) -> float:
        return amount / (rate.high if fast else rate.low)

    def duration_of(wait: Figure) -> float:
        return wait.low if fast else wait.high

    products = seconds(work.products, rates.products)
    attention = seconds(work.attention, rates.attention)
    passes = seconds(work.passes, rates.passes)
    update = seconds(work.update, rates.update)
    host = work.operations * duration_of(rates.per_operation)
    latency = duration_of(rates.per_collective)

    def on_the_wire(transfers: Sequence[Transfer]) -> float:
        return sum(
            t.calls * latency + seconds(t.sent(work.ranks), rates.allreduce) for t in transfers
        )

    compute = products + attention + passes
    backward = compute * (3 / 4 if work.recomputes_all else 2 / 3)
    gradients = on_the_wire([t for t in work.transfers if t.beside == "backward"])
    waits_for_gradients = gradients
    of_loss = [t for t in work.transfers if t.beside != "backward"]
    if rates.asynchronous:
        last_bucket = min(1.0, BUCKET_BYTES / work.gradients) if work.gradients else 0.0
        waits_for_gradients = max(gradients - backward, gradients * last_bucket)
        of_loss = [t for t in of_loss if t.beside is None]
    waits_for_loss = on_the_wire(of_loss)
    device = compute + update + waits_for_gradients + waits_for_loss
    loader = 0.0 if rates.loader is None else seconds(work.samples, rates.loader)
    alone = max(device, host) if rates.asynchronous else device + host
    step = max(alone, loader)
    limit: Limit = "compute"
    if loader > alone:
        limit = "loader"
    elif rates.asynchronous and host > device:
        limit = "host"
    elif waits_for_gradients + waits_for_loss > compute + update:
        limit = "all-reduce"
    return Times(
        products=products,
        attention=attention,
        passes=passes,
        update=update,
        host=host,
        gradients=gradients,
        waits_for_gradients=waits_for_gradients,
        waits_for_loss=waits_for_loss,
        loader=loader,
        step=step,
        limit=limit,
    )
