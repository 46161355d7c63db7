"""The softmax loss across ranks, as an op of torch.

Features travel once each way that a rank needs them (twice in a ring); their gradients never do.
Backward sends four numbers a pair, the sums of every row's and column's softmax, and each rank's
upstream gradient. Derivation: README.md, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .chunks import make_chunks
from .distributed import World, check_agreement, gather, rotate, start_gather, world_named
from .op import custom_op, op_body, refuse_second_derivative
from .sweeps import Softmax, SoftmaxRows, add_row_gradient, finish_gradient


class Across(NamedTuple):
    """A loss across ranks: its flags, which are the reference's, and how features travel."""

    local_loss: bool
    gather_with_grad: bool
    ring: bool

    @property
    def one_sided(self) -> bool:
        """The reference's incomplete gradient: other ranks' features are constants to this rank's
        loss.
        """
        return self.local_loss and not self.gather_with_grad


@custom_op("clip_ranks")
def clip_ranks(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    backend: str,
    group: str,
    agreement: int,
    local_loss: bool,
    gather_with_grad: bool,
    ring: bool,
    gathered: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss (), its derivative by the scale (), sums (2, 3, b), all images (N, D), all texts (N, D)).

    The last two are empty in a ring, and the images where they were `gathered` before; no ring then.
    `agreement` as `distributed.check_agreement` takes it.
    """
    world = world_named(group)
    with op_body(image):
        image, text = image.to(dtype), text.to(dtype)
        check_agreement("clip_loss", agreement, image, world)
        chunks = make_chunks(backend, image.device, dtype)
        first = world.first_row(len(image))
        rows = SoftmaxRows(chunks, image, scale, first)
        columns = SoftmaxRows(chunks, text, scale, first)
        all_images, all_texts = (image.new_empty(0, image.shape[1]) for _ in range(2))
        if ring:
            for at, images, texts in rotate(image, text, world):
                rows.add(texts, at)
                columns.add(images, at)
        else:
            all_texts, texts_work = start_gather(text, world)
            if gathered is not None:  # used while the texts are on their way
                columns.add(gathered, 0)
            else:
                all_images, images_work = start_gather(image, world)
            texts_work.wait()
            rows.add(all_texts, 0)
            if gathered is None:
                images_work.wait()
                columns.add(all_images, 0)
        of_rows, of_columns = rows.finish(), columns.finish()
        totals = torch.stack(
            [
                of_rows.surprise.sum() + of_columns.surprise.sum(),
                of_rows.gap.sum() + of_columns.gap.sum(),
            ]
        )
        pairs = 2 * len(image)
        if not local_loss:
            dist.all_reduce(totals, group=world.group)
            pairs *= world.size
        loss, by_scale = totals / pairs
        sums = torch.stack([of_rows.kept(), of_columns.kept()])
        return loss.clone(), by_scale.clone(), sums, all_images, all_texts


@clip_ranks.register_fake
def _(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    backend: str,
    group: str,
    agreement: int,
    local_loss: bool,
    gather_with_grad: bool,
    ring: bool,
    gathered: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    everyone = 0 if ring else world_named(group).size * len(image)
    images = everyone if gathered is None else 0
    return (
        scale.new_empty(()),
        scale.new_empty(()),
        scale.new_empty(2, 3, len(image)),
        image.new_empty(images, image.shape[1], dtype=dtype),
        image.new_empty(everyone, image.shape[1], dtype=dtype),
    )


@custom_op("clip_ranks_backward")
def clip_ranks_backward(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    by_scale: Tensor,
    sums: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    dtype: torch.dtype,
    backend: str,
    group: str,
    local_loss: bool,
    gather_with_grad: bool,
    ring: bool,
    to_image: bool,
    to_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, text (empty where not asked for) and scale."""
    world, across = world_named(group), Across(local_loss, gather_with_grad, ring)
    with op_body(image):
        results = [image.new_empty(0), text.new_empty(0)]
        if to_image or to_text:
            images, texts = image.to(dtype), text.to(dtype)
            rows = Softmax.saved(sums[0])
            columns = Softmax.saved(sums[1])
            terms = _terms(across, upstream, rows, columns, world)
            blocks: Iterator[tuple[int, Tensor, Tensor]] = iter([(0, all_images, all_texts)])
            if ring:
                blocks = rotate(images, texts, world)
            totals = [sums.new_zeros(image.shape), sums.new_zeros(text.shape)]
            chunks = make_chunks(backend, image.device, dtype)
            first = world.first_row(len(image))
            for at, their_images, their_texts in blocks:
                here = slice(at, at + len(their_texts))
                sides = (
                    (to_image, images, their_texts, rows, terms.columns),
                    (to_text, texts, their_images, columns, terms.rows),
                )
                for total, (wanted, queries, keys, own, others) in zip(totals, sides, strict=True):
                    if wanted:
                        other = None if others is None else others.at(here)
                        add_row_gradient(
                            chunks, total, queries, keys, at, scale, own, terms.own_weight, other,
                            first,
                        )  # fmt: skip
            factor = terms.factor * scale
            if to_image:
                finish_gradient(chunks, totals[0], terms.row_pairs, texts)
                results[0] = totals[0].mul_(factor).to(image.dtype)
            if to_text:
                finish_gradient(chunks, totals[1], terms.column_pairs, images)
                results[1] = totals[1].mul_(factor).to(text.dtype)
        return results[0], results[1], upstream * by_scale


@clip_ranks_backward.register_fake
def _(
    upstream: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    by_scale: Tensor,
    sums: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    dtype: torch.dtype,
    backend: str,
    group: str,
    local_loss: bool,
    gather_with_grad: bool,
    ring: bool,
    to_image: bool,
    to_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        image.new_empty(image.shape if to_image else (0,)),
        text.new_empty(text.shape if to_text else (0,)),
        torch.empty_like(by_scale),
    )


class _Others(NamedTuple):
    """The softmaxes of all ranks' images, or of all texts: (N,) each."""

    top: Tensor
    inverse: Tensor
    weight: Tensor

    def at(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return self.top[rows], self.inverse[rows], self.weight[rows]


class _Terms(NamedTuple):
    """The coefficients of a rank's gradient, without `factor`: at most 1 in size, so that what is
    rounded to half precision stays a probability.
    """

    factor: Tensor  # ()
    own_weight: Tensor  # ()
    rows: _Others | None
    columns: _Others | None
    row_pairs: Tensor  # (b,) coefficient of each own image's pair
    column_pairs: Tensor  # (b,) of each own text's


def _terms(
    across: Across, upstream: Tensor, rows: Softmax, columns: Softmax, world: World
) -> _Terms:
    """A row's term carries the upstream gradient of the rank whose loss it is part of."""
    pairs, one = len(rows.top), torch.ones_like(upstream)
    if across.one_sided:
        return _Terms(
            upstream / (2 * pairs),
            one,
            None,
            None,
            -rows.missed,
            -columns.missed,
        )
    mine = torch.stack([*rows[:2], *columns[:2]]).flatten()
    mine = torch.cat([mine, upstream.to(mine.dtype).reshape(1)])
    everyone = gather(mine.unsqueeze(0), world)  # (W, 4 b + 1)
    of_rows = everyone[:, :-1].view(world.size, 4, pairs).transpose(0, 1).reshape(4, -1)
    upstreams, own, weights = everyone[:, -1], one, one.expand(world.size * pairs)
    if not across.gather_with_grad:  # and not local_loss: its own copy of the global loss
        factor = upstream / (2 * world.size * pairs)
    elif not across.local_loss:
        factor = upstreams.mean() / (2 * pairs)
    else:
        # the largest upstream gradient goes into the factor
        largest = upstreams.abs().max()
        relative = torch.where(largest == 0, upstreams, upstreams / largest)
        factor, own = largest / (2 * pairs), relative[world.rank]
        weights = relative.unsqueeze(1).expand(-1, pairs).flatten()
    both = -own * (rows.missed + columns.missed)
    return _Terms(
        factor,
        own,
        _Others(of_rows[0], of_rows[1], weights),
        _Others(of_rows[2], of_rows[3], weights),
        both,
        both,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, scale, ctx.dtype, ctx.backend, ctx.group, _, *ctx.flags, gathered = inputs
    by_scale, sums, all_images, all_texts = output[1:]
    images = all_images if gathered is None else gathered
    ctx.save_for_backward(image, text, scale, by_scale, sums, images, all_texts)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 11
    image, text, scale, by_scale, sums, all_images, all_texts = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    gradients = clip_ranks_backward(
        upstream, image, text, scale, by_scale, sums, all_images, all_texts,
        ctx.dtype, ctx.backend, ctx.group, *ctx.flags, *wanted[:2],
    )  # fmt: skip
    return (*(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * 8)


clip_ranks.register_autograd(_backward, setup_context=_setup)
clip_ranks_backward.register_autograd(refuse_second_derivative)
