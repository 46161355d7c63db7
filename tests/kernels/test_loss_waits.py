"""No loss makes the host wait for the GPU, on one process or across ranks: what is inside the ops, run
on a GPU that is not there, in their torch form.

The one wait that is meant: the first call across ranks reads the batch sizes that it compares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastclip_kernels import CoCaLoss, DistillClipLoss
from fastclip_kernels.loss import clip_ranks as ranks
from fastclip_kernels.loss.clip_alone import clip_alone, clip_alone_backward
from fastclip_kernels.loss.distributed import join_world
from fastclip_kernels.loss.op import scaled_gradients
from fastclip_kernels.loss.siglip_block import siglip_block
from tests.fake_gpu import DEVICE, HostWaits, fake_gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS, WIDTH, WORLD = 300, 24, 4


@pytest.fixture
def world() -> Iterator[ranks.World]:
    """Rank 1 of 4, whose collectives send nothing."""
    dist.init_process_group("fake", rank=1, world_size=WORLD, store=FakeStore())
    joined = join_world("test", 1, WORLD)
    assert joined is not None
    yield joined
    dist.destroy_process_group()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, text = (torch.randn(ROWS, WIDTH, device=DEVICE) for _ in range(2))
    return image, text, torch.full((), 3.0, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_process(dtype: torch.dtype) -> None:
    with fake_gpu():
        image, text, scale = inputs()
        with HostWaits() as seen:
            loss, sums = clip_alone(image, text, scale, dtype, "torch")
            clip_alone_backward(loss, image, text, scale, sums, dtype, "torch", True, True, True)
            loss, *by, to_image, to_text = siglip_block(
                image, text, scale, scale, 0, dtype, "torch", True
            )
            scaled_gradients(loss, image, text, scale, to_image, to_text, by)
        assert seen.operations > 50
        assert seen.found == []


@pytest.mark.parametrize(
    ("ring", "local", "grad"), list(itertools.product([False, True], repeat=3))
)
def test_across_ranks(
    world: ranks.World, monkeypatch: pytest.MonkeyPatch, ring: bool, local: bool, grad: bool
) -> None:
    how = (torch.bfloat16, "torch", world.name)
    flags = (local, grad, ring)
    with fake_gpu():
        image, text, scale = inputs()
        monkeypatch.setattr(ranks, "check_agreement", lambda *_: None)
        with HostWaits() as seen:
            loss, *saved = ranks.clip_ranks(image, text, scale, *how, 0, *flags)
            ranks.clip_ranks_backward(loss, image, text, scale, *saved, *how, *flags, True, True)
        assert seen.operations > 50
        assert seen.found == []


def test_captions_and_distillation() -> None:
    with fake_gpu():
        image, text, scale = inputs()
        logits = torch.randn(ROWS, 5, 11, device=DEVICE)
        labels = torch.ones(ROWS, 5, dtype=torch.int64, device=DEVICE)
        with HostWaits() as seen:
            for weight in (0.0, 1.0):
                coca = CoCaLoss(2.0, weight, backend="torch")
                coca(image, text, logits, labels, scale)
            DistillClipLoss(backend="torch")(image, text, scale, image, text, scale)
        assert seen.found == []
