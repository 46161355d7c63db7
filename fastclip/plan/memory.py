"""Memory of one rank, by part, at the peak of a step."""

from __future__ import annotations

from dataclasses import dataclass

from fastclip.plan.counted_step import CountedStep
from fastclip.plan.traffic import takes_ring
from fastclip.train.recompute_choice import Account, after_reserve

# One chunk of logits and its sums (fastclip_kernels/loss/torch_chunks.py), only where ranks compare with each other
_CHUNK = {"cpu": 4 << 20, "cuda": 32 << 20}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes."""

    parameters: int
    gradients: int
    moments: int
    activations: int
    work: int  # casts of weights and whatever else lives for a while, at the peak
    loss: int  # features of all ranks, and one chunk of logits
    second_gradients: int  # DDP's new buckets beside its old ones, once, before a forward pass
    batches: int  # on the device: those of the step, the next, and one on its way
    unusual: int  # more for a batch of captions so long that each takes a row
    reserve: int | None  # kept free for the driver, NCCL, DALI and fragmentation; None: no figure
    available: int | None  # of the device

    @property
    def state(self) -> int:
        return self.parameters + self.gradients + self.moments

    @property
    def sorting(self) -> int:
        """While DDP sorts its buckets, in one of the first steps."""
        return self.state + self.second_gradients + self.batches

    @property
    def needed(self) -> int:
        of_step = self.state + self.activations + self.work + self.loss + self.batches
        return max(of_step, self.sorting)

    @property
    def most(self) -> int:
        """With the longest captions, and what is to stay free."""
        return self.needed + self.unusual + (self.reserve or 0)

    @property
    def fits(self) -> bool:
        return self.available is None or self.most <= self.available

    def samples_that_fit(self, samples: int) -> int:
        """About: state stays, the rest grows with the batch. 0: none does."""
        assert self.available is not None
        state = self.state + (self.reserve or 0)
        growing = self.most - state
        return max(0, int(samples * (self.available - state) / growing))


def memory_of(
    step: CountedStep,
    account: Account,
    kept_where_counted: int,  # bytes that the counted forward pass kept for backward
    way: str,
    device_type: str,
    available: int | None,
    ranks: int,
    accum_freq: int,
) -> Memory:
    """The counted peak of a rank alone, taken apart; activations as `device_type` keeps them."""
    state = step.parameters + step.gradients + step.moments
    usual = account.usual.kept(way)  # type: ignore[arg-type]
    longest = account.largest.kept(way)  # type: ignore[arg-type]
    gathered = 0
    if ranks > 1:
        gathered = _CHUNK.get(device_type, _CHUNK["cuda"])
        if not takes_ring(step.image, ranks):
            gathered += ranks * (step.image.bytes + step.text.bytes)
    return Memory(
        parameters=step.parameters,
        gradients=step.gradients,
        moments=step.moments,
        activations=usual,
        work=max(0, step.tally.peak - state - step.batch - kept_where_counted),
        loss=gathered,
        second_gradients=step.gradients if ranks > 1 else 0,
        batches=(accum_freq + 2) * step.batch,
        unusual=longest - usual,
        reserve=None if available is None else available - after_reserve(available),
        available=available,
    )
