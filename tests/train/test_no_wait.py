"""Between log lines the host never waits for the GPU: a whole step on one that is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from fastclip.data.ahead import move, tensors
from fastclip.data.batch import Batch, PackedText
from fastclip.model.clip import CLIP
from fastclip.model.model_config import parse_config
from fastclip.train import setup
from fastclip.train.distributed import World
from fastclip.train.parts import prepare_for_training
from tests.e2e import trajectories
from tests.e2e.trajectories import FixedLoader, learnable_batches, our_config, our_run
from tests.fake_gpu import DEVICE, HostWaits, fake_gpu

BATCH = 5
RAW: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "patch_dropout": 0.5,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1},
}  # fmt: skip
FLAGS = (
    "--train-data unused --model ViT-B-32-256 --warmup 5 --lr 1e-5 --loss-backend torch "
    f"--batch-size {BATCH} --epochs 1 --local-loss --gather-with-grad --grad-clip-norm 1"
).split()


def on_device(value: Any, device: torch.device) -> Any:
    """A batch of such shapes."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    return None if value is None else type(value)(*(on_device(each, device) for each in value))


def run_steps(
    seen: HostWaits,
    *flags: str,
    device: torch.device = DEVICE,
    plant: Callable[[Tensor], Any] = lambda features: None,
) -> None:
    """Two steps of a run, watched. `plant` gets the image features within the model's forward."""
    config = our_config([*FLAGS, *flags])
    accum = config.optim.accum_freq
    batches = learnable_batches(RAW, 2 * accum, BATCH, seed=0)

    def hook(module: Any, args: Any, features: Tensor) -> None:
        plant(features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "utilisation", lambda *_: None)
        patch.setattr(trajectories, "FixedLoader", unset_fake_temporarily()(FixedLoader))
        with fake_gpu() if device == DEVICE else FakeTensorMode():
            with device:
                model = CLIP(parse_config(dict(RAW), "test"), output_dict=True)
            prepare_for_training(model, config.model)
            run = our_run(model, model, batches, config, World(device=device))
            with unset_fake_temporarily():
                real = list(run.batches(0))
            groups = [on_device(batch, device) for batch in real]
            model.visual.register_forward_hook(hook)
            for step in range(2):
                run.before_step(step)
                with seen:
                    run.step(groups[step * accum : (step + 1) * accum])


AMP = ["--precision", "amp_bfloat16"]
ON_GPU: list[list[str]] = [
    AMP,
    [*AMP, "--accum-freq", "3", "--nonfinite", "stop"],
    [*AMP, "--nonfinite", "ignore", "--no-packed-text", "--no-prune-last-block"],
    [*AMP, "--grad-checkpointing", "--lock-image"],
    ["--precision", "amp"],
    ["--precision", "fp32", "--recompute", "pointwise"],
]
ON_CPU: list[list[str]] = [AMP, [*AMP, "--accum-freq", "2", "--grad-checkpointing"]]


@pytest.mark.parametrize("flags", ON_GPU, ids=" ".join)
def test_a_step_never_waits(flags: list[str]) -> None:
    seen = HostWaits()
    run_steps(seen, *flags)
    assert seen.operations > 400
    assert seen.found == []


@pytest.mark.parametrize("flags", ON_CPU, ids=" ".join)
def test_no_formula_of_backward_reads_a_number(flags: list[str]) -> None:
    run_steps(HostWaits(), *flags, device=torch.device("cpu"))  # would raise


def branch(x: Tensor) -> None:
    if x.sum() > 0:
        pass


READ = {"item", "_local_scalar_dense"}
PLANTED: dict[str, tuple[Callable[[Tensor], Any], set[str]]] = {
    "item": (lambda x: x.sum().item(), READ),
    "float": (lambda x: float(x[0, 0].detach()), READ),
    "if": (branch, READ),
    "tolist": (lambda x: x.tolist(), READ),
    "equal": (lambda x: torch.equal(x, x + 1), {"equal"}),
    "cpu": (lambda x: x.cpu(), {"_to_copy"}),
    "copy to the host": (lambda x: torch.empty(x.shape).copy_(x), {"copy_"}),
    "copy to the GPU": (lambda x: torch.ones(3).to(x.device), {"_to_copy"}),
    "a number made a tensor": (lambda x: torch.tensor(3.0, device=x.device), {"_to_copy"}),
    "mask": (lambda x: x[x > 0], {"index"}),
    "write by mask": (lambda x: x.detach().clone().index_put_((x > 0,), x[0, 0]), {"index_put_"}),
    "nonzero": (lambda x: x.nonzero(), {"nonzero"}),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_wait_is_seen(what: str) -> None:
    plant, names = PLANTED[what]
    seen = HostWaits()
    with contextlib.suppress(DataDependentOutputException, DynamicOutputShapeException):
        run_steps(seen, *AMP, plant=plant)
    assert names & set(seen.found)


def test_a_number_read_in_backward_is_seen() -> None:
    def plant(features: Tensor) -> None:
        if features.requires_grad:
            features.register_hook(lambda gradient: print(gradient.sum().item()))

    with pytest.raises(DataDependentOutputException):
        run_steps(HostWaits(), *AMP, device=torch.device("cpu"), plant=plant)


def test_a_batch_is_copied_from_pinned_memory_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: list[tuple[int, ...]] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    with fake_gpu():
        shapes = [(7, 77), (7, 77), (20,), (BATCH,)]
        text = PackedText(*(torch.empty(shape, dtype=torch.int64) for shape in shapes))
        images = torch.empty(BATCH, 9, 8, 3, dtype=torch.uint8)
        with HostWaits() as seen:
            moved = move(Batch(images, text), DEVICE)
        assert seen.found == []
        assert pinned == [(BATCH, 9, 8, 3), *shapes]
        assert all(tensor.device == DEVICE for tensor in tensors(moved))
