"""Several ranks: every rank's loss and gradients are the reference's, for all its ways of
distributing.

All cases of one world size run in one launch; each rank weighs its loss by another factor, so that
a term that carries the wrong rank's upstream gradient shows.
"""

from __future__ import annotations

import itertools
import secrets
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

import fastclip_kernels
from fastclip_kernels.loss import distributed
from tests.distributed.collectives import Collectives
from tests.distributed.launch import run_ranks
from tests.kernels.parity import Case, compare, failures, load_reference

# two cannot tell left from right, three leave no remainder in a ring of both directions, four do
WORLD_SIZES = [1, 2, 3, pytest.param(4, marks=pytest.mark.slow)]
PAIRS = [(False, False), (False, True), (True, False), (True, True)]
DTYPES = [(torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)]


def cases(rank: int, world_size: int) -> list[Case]:
    who = {"rank": rank, "world_size": world_size}
    flags = [{"local_loss": local, "gather_with_grad": grad, **who} for local, grad in PAIRS]
    weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.5}
    found = []
    for dtype, amp in DTYPES:
        kind: dict[str, Any] = {"rows": 5, "width": 16, "dtype": dtype, "autocast": amp}
        for each in flags:
            found += [
                Case("ClipLoss", each, **kind),
                Case("ClipLoss", each, **kind, bias=1.5, same_upstream=True),
                Case("ClipLoss", each, **kind, scale=100.0),
                Case("ClipLoss", each, {"exchange": "ring"}, **kind),
                Case("CoCaLoss", {**weights, **each}, **kind),
                Case("DistillClipLoss", each, **kind),
            ]
        for way in ("bidir", "shift", "reduce", "gather", None):
            found.append(Case("SigLipLoss", {"dist_impl": way, **who}, **kind, bias=-2.0))
    found += [Case("ClipLoss", each, rows=1, width=3, dtype=torch.float64) for each in flags]
    found += [Case("ClipLoss", each, rows=33, width=64, rows_are="matched") for each in flags]
    found += [Case("ClipLoss", flags[-1], {"exchange": "ring"}, rows=1, width=3)]
    return found


def name_of(case: Case) -> str:
    """The case without what differs between ranks."""
    options = {key: value for key, value in case.options.items() if key != "rank"}
    return str(Case(**{**vars(case), "options": options})) + f"-{case.same_upstream}"


def failures_of_all(rank: int, world_size: int, seed: int) -> dict[str, list[str]]:
    reference = load_reference()
    return {
        name_of(case): failures(
            case, compare(case, fastclip_kernels, reference, seed, rank, world_size)
        )
        for case in cases(rank, world_size)
    }


@pytest.fixture(scope="module", params=WORLD_SIZES)
def world(request):
    """(world size, failures of each case on each rank, seed)"""
    seed = secrets.randbits(32)
    if request.param == 1:
        return 1, [failures_of_all(0, 1, seed)], seed
    if request.param == 2:
        found = request.getfixturevalue("two_ranks")
        return 2, [each["parity"] for each in found], found[0]["seed"]
    return request.param, run_ranks(failures_of_all, request.param, (seed,)), seed


@pytest.fixture(scope="module")
def two_ranks():
    """What each of two ranks found, in one launch."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return run_ranks(everything, 2, (seed,))


def everything(rank: int, world_size: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "parity": failures_of_all(rank, world_size, seed),
        "warnings": warnings_of_all(rank, world_size),
        "bytes": bytes_received(rank, world_size),
        "agreement": agreement_errors(rank, world_size),
        "ddp": ddp_parameters(rank, world_size, seed),
        "begun": losses_with_images_begun(rank, world_size, seed),
    }


@pytest.mark.parametrize("index", range(len(cases(0, 1))), ids=lambda i: name_of(cases(0, 1)[i]))
def test_every_rank_has_the_references_loss_and_gradients(world, index):
    world_size, results, seed = world
    name = name_of(cases(0, world_size)[index])
    print(f"seed {seed}")
    found = [f"rank {rank}: {line}" for rank, each in enumerate(results) for line in each[name]]
    assert not found, "\n".join(found)


def bytes_received(rank: int, world_size: int) -> dict[str, Any]:
    """Bytes that this rank receives in collectives, forward and backward, with and without autocast;
    and of all features in float32, which is what the reference gathers, and reduces in backward.
    """
    rows, width = 64, 512
    flags = {"local_loss": True, "gather_with_grad": True, "rank": rank, "world_size": world_size}
    image, text = (torch.randn(rows, width, requires_grad=True) for _ in range(2))
    fastclip_kernels.clip_loss(image, text, 1.0, **flags)  # the batch size is agreed on
    received: list[int] = []

    def all_gather(output, rows, world):
        received.append(output.numel() * output.element_size())
        return original(output, rows, world)

    def forbidden(*args, **kwargs):
        raise AssertionError("a collective that is not needed")

    counts = {"features": 2 * world_size * rows * width * 4}
    with pytest.MonkeyPatch.context() as patch:
        original = distributed._all_gather
        patch.setattr(distributed, "_all_gather", all_gather)
        for name in ("all_reduce", "all_to_all_single", "broadcast", "batch_isend_irecv"):
            patch.setattr(dist, name, forbidden)
        for amp in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                agreement = distributed.BatchAgreement()
                distributed.agree(
                    "",
                    agreement,
                    image.to(torch.bfloat16) if amp else image,
                    distributed.join_world("", rank, world_size),
                )
                received.clear()
                loss = fastclip_kernels.clip_loss(image, text, 1.0, **flags, agreement=agreement)
            counts[f"forward, autocast {amp}"] = sum(received)
            received.clear()
            loss.backward()
            counts[f"backward, autocast {amp}"] = sum(received)
    return counts


def warnings_of_all(rank: int, world_size: int) -> list[str]:
    """What torch warns of when our collectives run, forward and backward."""
    who = {"rank": rank, "world_size": world_size}
    image, text = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for local, grad in PAIRS:
            flags = {"local_loss": local, "gather_with_grad": grad, **who}
            fastclip_kernels.ClipLoss(**flags)(image, text, 1.0).backward()
            distill = fastclip_kernels.DistillClipLoss(**flags)
            sum(distill(image, text, 1.0, image.detach(), text.detach(), 1.0)).backward()
        for way in ("bidir", "shift", "reduce", "gather"):
            loss = fastclip_kernels.SigLipLoss(dist_impl=way, **who)
            loss(image, text, 1.0, None).backward()
    return [str(each.message) for each in caught]


def agreement_errors(rank: int, world_size: int) -> dict[str, str]:
    """The messages of each disagreement, which every rank must survive."""

    def message(call, *args) -> str:
        try:
            call(*args)
        except ValueError as error:
            return str(error)
        return "no error"

    who = {"rank": rank, "world_size": world_size}
    uneven = torch.randn(8 - rank, 4)
    even = torch.randn(8, 4)
    module = fastclip_kernels.ClipLoss(**who)
    shorter = torch.randn(6, 4)
    found = {
        "uneven": message(fastclip_kernels.ClipLoss(**who), uneven, uneven, 1.0),
        "uneven siglip": message(fastclip_kernels.SigLipLoss(**who), uneven, uneven, 1.0, None),
        "width": message(fastclip_kernels.ClipLoss(**who), *(torch.randn(8, 4 + rank),) * 2, 1.0),
        "rank": message(fastclip_kernels.ClipLoss(rank=0, world_size=5), even, even, 1.0),
        "fits": message(module, even, even, 1.0),
    }
    found["changed"] = message(module, shorter, shorter, 1.0)
    # a rank that is alone in changing raises before it communicates, and can go on
    if rank == 1:
        found["alone"] = message(module, shorter, shorter, 1.0)
    found["goes on"] = message(module, even, even, 1.0)
    found["another object"] = message(fastclip_kernels.ClipLoss(**who), shorter, shorter, 1.0)
    subgroup = dist.new_group([1, 0])
    found["subgroup"] = message(
        lambda: fastclip_kernels.siglip_loss(
            even, even, 1.0, 0.0, rank=dist.get_rank(subgroup), world_size=2, group=subgroup
        )
    )
    return found


def test_disagreement_is_one_error_on_every_rank(two_ranks):
    for rank, found in enumerate(each["agreement"] for each in two_ranks):
        for kind in ("uneven", "uneven siglip"):
            assert "rank 0 has (8, 4)" in found[kind], found
            assert "rank 1 has (7, 4)" in found[kind], found
        assert "rank 1 has (8, 5)" in found["width"], found
        assert f"rank={rank}, world_size=2, got rank=0, world_size=5" in found["rank"], found
        assert "agreed on features of (8, 4)" in found["changed"], found
        assert "now has (6, 4)" in found["changed"], found
        assert found["fits"] == found["goes on"] == found["another object"] == "no error", found
        assert found["subgroup"] == "no error", found
    assert "rank 1 now has (6, 4)" in two_ranks[1]["agreement"]["alone"]


def test_features_travel_once_and_their_gradients_never(two_ranks):
    for counts in (each["bytes"] for each in two_ranks):
        features = counts["features"]
        assert counts["forward, autocast False"] == features
        assert counts["forward, autocast True"] == features / 2
        for amp in (False, True):
            assert 0 < counts[f"backward, autocast {amp}"] <= features / 100, counts


# what `begin` is given: how many gathers it starts, and how many of them are of no use
BEGUN = {
    "these images": (1, 0),
    "other images": (2, 2),
    "images changed since": (1, 1),
    "another autocast": (1, 1),
}


def losses_with_images_begun(rank: int, world_size: int, seed: int) -> dict[str, Any]:
    """By case: whether loss and gradients have the bits they have without `begin`, how many
    collectives it issued, and how many gathers more than without it there were in all.
    """
    generator = torch.Generator().manual_seed(seed + rank)
    found = {}
    for (local, grad), (dtype, amp), exchange in itertools.product(PAIRS, DTYPES, ["auto", "ring"]):
        flags = {"local_loss": local, "gather_with_grad": grad, "exchange": exchange}
        loss = fastclip_kernels.ClipLoss(**flags, rank=rank, world_size=world_size)
        first, image, text = (
            torch.randn(5, 16, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)
        )

        def call(begun: str | None, loss=loss, first=first, image=image, text=text, amp=amp):
            images = image.clone()
            with Collectives() as seen, torch.autocast("cpu", amp, enabled=amp is not None):
                if begun == "these images":
                    loss.begin(images)
                elif begun == "other images":
                    loss.begin(first)
                    loss.begin(first.clone())
                elif begun == "images changed since":
                    loss.begin(images)
                    with torch.no_grad():
                        images.mul_(1)
                elif begun == "another autocast":
                    with torch.autocast("cpu", torch.float16):
                        loss.begin(images)
                ahead = len(seen.calls)
                value = loss(images, text, 3.0)
            gathers = len(seen.named("_allgather_base_"))
            return value, *torch.autograd.grad(value, (image, text)), (ahead, gathers)

        for each in (None, *BEGUN):  # ranks agree on the shapes first
            call(each)
        *plain, (_, usual) = call(None)
        for begun in BEGUN:
            *results, (ahead, gathers) = call(begun)
            same = all(torch.equal(a, b) for a, b in zip(plain, results, strict=True))
            case = f"{begun} {local} {grad} {dtype} {amp} {exchange}"
            found[case] = (same, ahead, gathers - usual)
    return found


def test_images_that_were_sent_ahead_change_no_bit(two_ranks):
    for found in (each["begun"] for each in two_ranks):
        for case, (same, *counts) in found.items():
            assert same, case
            wanted = next(BEGUN[begun] for begun in BEGUN if case.startswith(begun))
            if case.endswith("ring"):
                wanted = (0, 0)
            elif case.startswith("another autocast") and "float64" in case:
                wanted = (1, 0)  # which autocast leaves alone
            assert tuple(counts) == wanted, case


def ddp_parameters(rank: int, world_size: int, seed: int) -> dict[str, float]:
    """Distance of our trained parameters to the reference's and to rank 0's, for each pair of
    flags.
    """
    reference = load_reference()
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(world_size, 3, 6, 8, generator=generator)[rank]  # 3 steps of 6 pairs

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.image, self.text = torch.nn.Linear(8, 16), torch.nn.Linear(8, 16)
            self.scale = torch.nn.Parameter(torch.tensor(2.6))

        def forward(self, x):
            normalize = torch.nn.functional.normalize
            return normalize(self.image(x)), normalize(self.text(x.flip(1))), self.scale.exp()

    def train(losses: Any, **flags: Any) -> torch.Tensor:
        model = torch.nn.parallel.DistributedDataParallel(Towers())
        loss = losses.ClipLoss(rank=rank, world_size=world_size, **flags)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for batch in data:
            optimizer.zero_grad()
            loss(*model(batch)).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    distances = {}
    for local, grad in PAIRS:
        flags = {"local_loss": local, "gather_with_grad": grad}
        ours, theirs = train(fastclip_kernels, **flags), train(reference, **flags)
        first = ours.clone()
        dist.broadcast(first, 0)
        distances[f"{local} {grad} from reference"] = float((ours - theirs).norm() / theirs.norm())
        distances[f"{local} {grad} from rank 0"] = float((ours - first).norm())
    return distances


def test_our_collectives_are_none_that_torch_warns_of(two_ranks):
    assert not [line for each in two_ranks for line in each["warnings"]]


def test_parameters_under_ddp_follow_the_references_and_agree(two_ranks):
    for distances in (each["ddp"] for each in two_ranks):
        for what, distance in distances.items():
            assert distance <= (0 if what.endswith("rank 0") else 1e-6), (what, distance)
