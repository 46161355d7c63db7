"""What the losses say to other ranks: who they are, that batch sizes agree, features there,
gradients back.

Every collective here is called by all ranks in the same order, forward and backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

GradientTo = Literal["every rank", "own rows", "nobody"]
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class World:
    """The ranks of one loss; exists only where there is more than one."""

    group: Any  # a ProcessGroup
    rank: int  # within the group
    size: int

    @property
    def name(self) -> str:
        """By which an op of torch, which takes no objects, finds the group again."""
        name: str = self.group.group_name
        return name

    def first_row(self, local_rows: int) -> int:
        """Where this rank's rows begin among the gathered ones."""
        return self.rank * local_rows


def join_world(op: str, rank: int, world_size: int, group: Any = None) -> World | None:
    """The checked world, or None for a single process, which needs no process group."""
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"{op}: rank must be in 0..world_size-1, got rank={rank}, world_size={world_size}"
        )
    if world_size == 1:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{op}: world_size={world_size} needs a process group: call"
            " torch.distributed.init_process_group first, or pass world_size=1"
        )
    group = dist.group.WORLD if group is None else group
    actual = (dist.get_rank(group), dist.get_world_size(group))
    if (rank, world_size) != actual:
        raise ValueError(
            f"{op}: the process group has rank={actual[0]}, world_size={actual[1]},"
            f" got rank={rank}, world_size={world_size}"
        )
    return World(group, rank, world_size)


def world_named(name: str) -> World:
    """The world whose `name` this is."""
    group = distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]  # a str
    return World(group, dist.get_rank(group), dist.get_world_size(group))


class BatchAgreement:
    """Ranks agree once on the shape of their features, and each then keeps to it.

    Unequal shapes would hang or corrupt a gather. The first call of a loss compares them on all
    ranks and raises on all; a rank that later comes with another shape raises alone, before it
    communicates. An op of torch takes no objects: it knows an agreement by its key.
    """

    _keys = itertools.count(1)  # 0: the one of the functional forms

    def __init__(self) -> None:
        self.key = next(self._keys)

    def __reduce__(self) -> tuple[type[BatchAgreement], tuple[()]]:
        """A copy of a loss, or one loaded from a file, agrees anew."""
        return BatchAgreement, ()


# rows by group, and by (key, width, index into _DTYPES): other features are agreed on apart
_agreed: WeakKeyDictionary[Any, dict[tuple[int, int, int], int]] = WeakKeyDictionary()


def check_agreement(op: str, key: int, features: Tensor, world: World) -> None:
    """Raises ValueError where there are not as many rows as the ranks agreed on."""
    mine = [len(features), features.shape[1], _DTYPES.index(features.dtype)]
    of_group = _agreed.setdefault(world.group, {})
    kind = (key, mine[1], mine[2])
    if kind not in of_group:
        # int64 on the features' device: the only place a process group is sure to reach
        everyone = torch.empty(world.size, 3, dtype=torch.int64, device=features.device)
        _all_gather(everyone, everyone.new_tensor([mine]), world).wait()
        for rank, theirs in enumerate(everyone.tolist()):
            if theirs != everyone[0].tolist():
                raise ValueError(
                    f"{op}: every rank must bring features of one shape and dtype:"
                    f" rank 0 has {_describe(everyone[0].tolist())},"
                    f" rank {rank} has {_describe(theirs)}"
                )
        of_group[kind] = mine[0]
    elif mine[0] != of_group[kind]:
        raise ValueError(
            f"{op}: the first call agreed on features of {_describe([of_group[kind], *mine[1:]])},"
            f" rank {world.rank} now has {_describe(mine)}; drop the last short batch, use"
            " world_size=1 for evaluation, or a loss object (agreement=BatchAgreement()) for each"
            " batch size"
        )


def agree(op: str, agreement: BatchAgreement | None, features: Tensor, world: World) -> None:
    """`check_agreement` with an object; None: the one of the functional forms."""
    check_agreement(op, 0 if agreement is None else agreement.key, features, world)


def _describe(shape: Any) -> str:
    return f"({shape[0]}, {shape[1]}) {_DTYPES[shape[2]]}"


def start_gather(rows: Tensor, world: World) -> tuple[Tensor, Any]:
    """Rank 0's rows, then rank 1's, ...; complete after `.wait()` of the second result."""
    everyone = rows.new_empty((world.size * len(rows), *rows.shape[1:]))
    return everyone, _all_gather(everyone, rows.contiguous(), world)


class BegunGather:
    """Features on their way to all ranks while something else is computed, for one call of a loss."""

    def __init__(self, features: Tensor, rows: Tensor, world: World) -> None:
        self._features, self._version = features, features._version
        self._rows, self._world = rows, world
        self._everyone, self._work = start_gather(rows, world)

    def finish(self, features: Tensor, dtype: torch.dtype, world: World) -> Tensor | None:
        """All ranks' rows, once they are there; None if it was not these features that were sent, as
        they are now and rounded to `dtype`, so that they are still to be gathered.

        All ranks must come to the same answer, as the same program on each does.
        """
        self.wait()
        same = features is self._features and features._version == self._version
        return (
            self._everyone if same and (dtype, world) == (self._rows.dtype, self._world) else None
        )

    def wait(self) -> None:
        """End the collective, whose result nobody may want."""
        self._work.wait()


def _all_gather(everyone: Tensor, rows: Tensor, world: World) -> Any:
    # renamed in torch 2.14, which warns of the old name
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return collective(everyone, rows, group=world.group, async_op=True)


def gather(rows: Tensor, world: World) -> Tensor:
    """Rank 0's rows, then rank 1's, ...; no gradient."""
    everyone, work = start_gather(rows, world)
    work.wait()
    return everyone


def rotate(images: Tensor, texts: Tensor, world: World) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, images, texts) of every rank, this rank's own first, then its left neighbour's, ...

    While a block is used the next one is on its way: two blocks in memory, and at first the own one
    is one of them. All ranks go round at once.
    """
    block = torch.stack([images, texts])
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for step in range(world.size):
        works, coming = [], block
        if step < world.size - 1:
            coming = torch.empty_like(block)
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, block, group=world.group, group_peer=right),
                    dist.P2POp(dist.irecv, coming, group=world.group, group_peer=left),
                ]
            )
        owner = (world.rank - step) % world.size
        yield owner * len(images), block[0], block[1]
        for work in works:
            work.wait()
        block = coming


def gather_with_gradient(rows: Tensor, world: World, gradient_to: GradientTo) -> Tensor:
    """`gather` whose gradient goes to the rows of all ranks, of this rank only, or nowhere."""
    if gradient_to == "nobody":
        return gather(rows.detach(), world)
    gathered: Tensor = _Gather.apply(rows, world, gradient_to == "every rank")
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, to_every_rank: bool) -> Tensor:
        ctx.world, ctx.to_every_rank = world, to_every_rank
        return gather(rows, world)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        world = ctx.world
        if not ctx.to_every_rank:
            return gradient.chunk(world.size)[world.rank], None, None
        return _reduce_scatter(gradient.contiguous(), world), None, None


def _reduce_scatter(rows: Tensor, world: World) -> Tensor:
    """This rank's share of the rows, summed over ranks."""
    mine = rows.new_empty((len(rows) // world.size, *rows.shape[1:]))
    if rows.is_cuda:
        # renamed in torch 2.14, which warns of the old name
        collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        collective(mine, rows, group=world.group)
        return mine
    # not every CPU backend can reduce_scatter
    parts = torch.empty_like(rows)
    dist.all_to_all_single(parts, rows, group=world.group)
    return parts.view(world.size, *mine.shape).sum(0)


def exchange(world: World, shifts: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
    """tensors[k] goes to rank + shifts[k]; what comes back is that of rank - shifts[k].
    Differentiable.
    """
    received: tuple[Tensor, ...] = _Exchange.apply(world, shifts, *tensors)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, world: World, shifts: tuple[int, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.world, ctx.shifts = world, shifts
        return _send_and_receive(world, shifts, tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back = tuple(-shift for shift in ctx.shifts)
        return None, None, *_send_and_receive(ctx.world, back, gradients)


def _send_and_receive(
    world: World, shifts: tuple[int, ...], tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    received = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)
    operations = []
    for shift, tensor in zip(shifts, tensors, strict=True):
        to = (world.rank + shift) % world.size
        operations.append(
            dist.P2POp(dist.isend, tensor.contiguous(), group=world.group, group_peer=to)
        )
    for shift, into in zip(shifts, received, strict=True):
        source = (world.rank - shift) % world.size
        operations.append(dist.P2POp(dist.irecv, into, group=world.group, group_peer=source))
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


def broadcast_rows(rows: Tensor, world: World, source: int) -> Tensor:
    """The rows of rank `source`, on every rank; their gradients are summed on that rank.

    Every rank, `source` too, must use the result in its loss, or the others wait for its gradient
    forever.
    """
    received: Tensor = _Broadcast.apply(rows, world, source)
    return received


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, source: int) -> Tensor:
        ctx.world, ctx.source = world, source
        received = rows.clone(memory_format=torch.contiguous_format)
        dist.broadcast(received, group=world.group, group_src=source)
        return received

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        world = ctx.world
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.reduce(total, group=world.group, group_dst=ctx.source)
        return total if world.rank == ctx.source else torch.zeros_like(total), None, None
