"""The ops as citizens of torch: opcheck, compiled whole graphs, torch.func, wrapped models."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch.library import opcheck

import fastclip_kernels as kernels
from fastclip_kernels.loss.clip_alone import clip_alone, clip_alone_backward
from fastclip_kernels.loss.op import scaled_gradients
from fastclip_kernels.loss.siglip_block import siglip_block
from fastclip_kernels.testing import unit_features
from tests.distributed.launch import run_ranks

LOSSES = [kernels.clip_loss, kernels.siglip_loss]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=["clip", "siglip"])


@pytest.fixture
def inputs():
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    image, text = (unit_features(19, 16, generator).requires_grad_() for _ in range(2))
    return image, text, torch.tensor(9.0, requires_grad=True), torch.tensor(-3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_ops_on_one_process(inputs, dtype):
    image, text, scale, bias = inputs
    opcheck(clip_alone, (image, text, scale, dtype, "torch"))
    for first in (0, None, -3):
        opcheck(siglip_block, (image, text, scale, bias, first, dtype, "torch", True))
    constants = [each.detach() for each in inputs]
    sums = clip_alone(*constants[:3], dtype, "torch")[1]
    one = torch.tensor(1.0)
    for wanted in [(True, True, True), (True, False, False), (False, True, True)]:
        arguments = (one, *constants[:3], sums, dtype, "torch", *wanted)
        opcheck(clip_alone_backward, arguments)
    _, *by_scalars, to_image, to_text = siglip_block(*constants, 0, dtype, "torch", True)
    opcheck(scaled_gradients, (one, *constants[:3], to_image, to_text, by_scalars))


def opcheck_across_ranks(rank: int, world_size: int) -> None:
    from fastclip_kernels.loss import distributed
    from fastclip_kernels.loss.clip_ranks import clip_ranks, clip_ranks_backward

    torch.manual_seed(rank)
    image, text = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    scale = torch.tensor(9.0, requires_grad=True)
    world = distributed.join_world("", rank, world_size)
    assert world is not None
    for ring in (False, True):
        for local, grad in [(True, True), (True, False), (False, True)]:
            how = (torch.float32, "torch", world.name)
            flags = (local, grad, ring)
            opcheck(clip_ranks, (image, text, scale, *how, 0, *flags))
            if not ring:
                gathered = distributed.gather(image.detach(), world)
                opcheck(clip_ranks, (image, text, scale, *how, 0, *flags, gathered))
            with torch.no_grad():
                saved = clip_ranks(image, text, scale, *how, 0, *flags)[1:]
                constants = [torch.tensor(1.0), *(x.detach() for x in (image, text, scale))]
            opcheck(clip_ranks_backward, (*constants, *saved, *how, *flags, True, True))


def compiled_across_ranks(rank: int, world_size: int) -> list[float]:
    """Differences of the compiled loss and gradients from the eager ones."""
    torch.manual_seed(rank)
    image, text = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
    found = []
    for options in ({"exchange": "gather"}, {"exchange": "ring"}):
        loss = kernels.ClipLoss(True, True, rank=rank, world_size=world_size, **options)
        results = []
        for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            value = call(image, text, 9.0)
            results.append([value, *torch.autograd.grad(value, (image, text))])
        found += [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
    return found


def fsdp_across_ranks(rank: int, world_size: int) -> float:
    """How far a model under FSDP2 is from the same one under DDP after two steps."""
    from torch.distributed.fsdp import fully_shard

    def train(wrap):
        torch.manual_seed(0)
        model = wrap(torch.nn.Linear(8, 16))
        scale = torch.tensor(9.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        loss = kernels.ClipLoss(True, True, rank=rank, world_size=world_size)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(2):
            features = model(torch.randn(12, 8, generator=generator))
            optimizer.zero_grad()
            loss(*torch.nn.functional.normalize(features, dim=1).split(6), scale).backward()
            optimizer.step()
        weight = next(model.parameters())
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()

    sharded = train(lambda model: fully_shard(model))
    replicated = train(torch.nn.parallel.DistributedDataParallel)
    return float((sharded - replicated).abs().max())


def on_ranks(rank: int, world_size: int) -> dict[str, object]:
    opcheck_across_ranks(rank, world_size)
    return {
        "compiled": compiled_across_ranks(rank, world_size),
        "fsdp": fsdp_across_ranks(rank, world_size),
    }


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(on_ranks, 2)


@pytest.mark.slow  # compiles on two ranks
def test_across_ranks_opcheck_compile_and_fsdp(two_ranks):
    for found in two_ranks:
        assert max(found["compiled"]) <= 1e-6, found
        assert found["fsdp"] <= 1e-6, found


@each_loss
def test_torch_func_is_one_clear_error(loss, inputs):
    image, text, scale, bias = (each.detach() for each in inputs)
    with pytest.raises(RuntimeError, match=r"not supported inside torch.func transforms"):
        torch.func.grad(loss)(image, text, scale, bias)
    with pytest.raises(RuntimeError, match=r"not supported inside torch.func transforms"):
        torch.func.vmap(loss, in_dims=(0, 0, None, None))(image[None], text[None], scale, bias)
    with torch.autograd.forward_ad.dual_level():
        image = torch.autograd.forward_ad.make_dual(image.detach(), text.detach())
        with pytest.raises(RuntimeError, match=r"no forward-mode derivatives"):
            loss(image, text, scale, bias)
