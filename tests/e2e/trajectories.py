"""The same run twice from the same weights on the same batches: by the reference's own trainer code, and by ours.

The reference side is `open_clip`'s model and loss, and `open_clip_train`'s schedulers and `train_one_epoch`, joined
as its main() joins them. Our side is `fastclip.train`, from flags to loop, with the data loader replaced.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP as ReferenceCLIP
from open_clip_train import params as reference_params
from open_clip_train import scheduler as reference_scheduler
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.config.train_config import TrainConfig
from fastclip.data.batch import Batch
from fastclip.data.packing import PackRule, TextPacker, rows_for
from fastclip.model.clip import CLIP
from fastclip.model.model_config import parse_config
from fastclip.optim.build import build_optimizer
from fastclip.train.attention import set_up_attention
from fastclip.train.distributed import World
from fastclip.train.loop import train_epoch
from fastclip.train.packed_captions import choose_packing
from fastclip.train.parts import Parts, prepare_for_training
from fastclip.train.precision import make_scaler
from fastclip.train.run_folder import RunFolder
from fastclip.train.run_lock import RunLock
from fastclip.train.setup import Run, build_run
from fastclip.train.stop_request import StopRequest
from fastclip.train.writers import Writers

# ViT-B-32-256 with every count that matters kept (64 patches, 77 tokens, head width 64), narrower and shallower.
REDUCED = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 256, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 1000, "width": 64, "heads": 1, "layers": 2},
}
VIT_B_32_256 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 256, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}


@dataclass
class Trajectory:
    losses: list[float] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)

    def movement(self) -> dict[str, Tensor]:
        return {k: (self.after[k] - self.before[k]).double() for k in self.before}


def learnable_batches(
    raw: Mapping[str, Any], count: int, size: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """uint8 NHWC pictures and captions that tell which of a few patterns a picture shows: a loss that can fall."""
    generator = torch.Generator().manual_seed(seed)
    side = raw["vision_cfg"]["image_size"]
    length, vocab = raw["text_cfg"]["context_length"], raw["text_cfg"]["vocab_size"]
    kinds = 4 * size
    patterns = torch.randint(0, 256, (kinds, 4, 4, 3), generator=generator).float()
    words = torch.randint(1, vocab - 2, (kinds, 6), generator=generator)
    batches = []
    for _ in range(count):
        which = torch.randperm(kinds, generator=generator)[:size]
        coarse = patterns[which].permute(0, 3, 1, 2)
        pictures = nn.functional.interpolate(coarse, size=(side, side)).permute(0, 2, 3, 1)
        noise = 20 * torch.randn(pictures.shape, generator=generator)
        images = (pictures + noise).round().clamp(0, 255).to(torch.uint8)
        texts = torch.zeros(size, length, dtype=torch.int64)
        texts[:, 0] = vocab - 2
        for row, kind in enumerate(which):
            n = int(torch.randint(1, 7, (), generator=generator))
            texts[row, 1 : n + 1] = words[kind, :n]
            texts[row, n + 1] = vocab - 1
        batches.append((images, texts))
    return batches


def normalised(images: Tensor) -> Tensor:
    """ToTensor and Normalize of the reference's transform, on uint8 (B, H, W, 3)."""
    from torchvision.transforms import functional as tv

    pixels = images.permute(0, 3, 1, 2).float().div(255)
    return tv.normalize(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def reference_model(raw: Mapping[str, Any], seed: int, **options: Any) -> ReferenceCLIP:
    torch.manual_seed(seed)
    return ReferenceCLIP(**copy.deepcopy(dict(raw)), output_dict=True, **options)


# Switches of ours that turn an exact saving off: there is none in the reference.
_OURS = {"--no-packed-text", "--no-prune-last-block", "--no-fused-patch-embed"}


def parse_reference(flags: Sequence[str]) -> argparse.Namespace:
    flags = [flag for flag in flags if flag not in _OURS]
    if "--recompute" in flags:
        at = flags.index("--recompute")
        flags = [*flags[:at], *flags[at + 2 :]]
    args = reference_params.parse_args(list(flags))
    extras = {
        "distill": args.distill_model is not None,
        "distributed": False,
        "rank": 0,
        "local_rank": 0,
        "world_size": 1,
        "wandb": False,
    }
    for name, value in extras.items():
        setattr(args, name, value)
    return args


def reference_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """As the reference's main() builds it."""

    def exclude(n: str, p: Tensor) -> bool:
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": args.wd},
        ],
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        eps=args.eps,
    )


class _Losses:
    """Stands in for the TensorBoard writer: train_one_epoch hands it every loss in full precision."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if tag == "train/loss":
            self.values.append(value)


class ReferenceLoader:
    """A loader of the reference's that hands out given batches."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches
        self.num_batches = len(batches)
        self.num_samples = len(batches) * len(batches[0][0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, texts in self._batches:
            yield normalised(images), texts


class _WithExactLogits(nn.Module):
    """A loss of the reference outside of autocast."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, *, output_dict: bool, **features: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            wide = {name: each.float() for name, each in features.items()}
            return self._loss(**wide, output_dict=output_dict)


def reference_trajectory(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    flags: Sequence[str],
    *,
    exact_logits: bool = False,  # of the same features, and not rounded to autocast's dtype
) -> Trajectory:
    args = parse_reference(flags)
    if args.lock_image:
        model.lock_image_tower(args.lock_image_unlocked_groups, args.lock_image_freeze_bn_stats)
    if args.lock_text:
        model.lock_text_tower(args.lock_text_unlocked_layers, args.lock_text_freeze_layer_norm)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    result = Trajectory(before=copy.deepcopy(model.state_dict()))
    optimizer = reference_optimizer(model, args)

    steps = len(batches) // args.accum_freq
    schedule = reference_scheduler.cosine_lr(optimizer, args.lr, args.warmup, steps)
    data = {
        "train": SimpleNamespace(dataloader=ReferenceLoader(batches), set_epoch=lambda epoch: None)
    }
    losses = _Losses()
    loss = open_clip.create_loss(args)
    if exact_logits:
        loss = _WithExactLogits(loss)
    train_one_epoch(model, data, loss, 0, optimizer, None, schedule, None, args, tb_writer=losses)
    result.losses, result.after = losses.values, copy.deepcopy(model.state_dict())
    return result


class FixedLoader:
    """A TrainLoader that hands out given batches, packed where the run packs."""

    def __init__(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        world_size: int = 1,
        pack: PackRule | None = None,
    ) -> None:
        self._batches = batches
        self.packer = None
        if pack is not None:
            texts = torch.cat([texts for _, texts in batches]).numpy()
            rows = rows_for(pack.lengths(texts), len(batches[0][0]), texts.shape[1])
            assert rows < len(batches[0][0]) or rows == 1, "packs nothing"
            self.packer = TextPacker(pack, rows)
        self.num_batches = len(batches)
        self.num_samples = len(batches) * len(batches[0][0]) * world_size
        self.bad = SimpleNamespace(dropped=0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        make_batch = Batch if self.packer is None else self.packer.batch
        return (make_batch(images, texts) for images, texts in self._batches)


class _Recorder:
    """A step that remembers each loss and runs a check after it."""

    def __init__(self, step: Callable[..., Any], after: Callable[[], None]) -> None:
        self._step, self._after = step, after
        self.losses: list[float] = []

    def __call__(self, batches: Sequence[Batch]) -> Any:
        result = self._step(batches)
        self.losses.append(result.losses["loss"].item())
        self._after()
        return result


def our_config(flags: Sequence[str]) -> TrainConfig:
    return resolve(parse_args([*flags, "--logs", "none", "--device", "cpu"]))


def our_run(
    model: nn.Module,
    wrapped: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    config: TrainConfig,
    world: World,
) -> Run:
    optimizer = build_optimizer(config.optim, model)
    pack = choose_packing(model, None, config)
    set_up_attention(
        model, None, config, world.device, packed=pack is not None, teacher_packed=False
    )
    parts = Parts(
        model=model,
        wrapped=wrapped,
        teacher=None,
        optimizer=optimizer,
        scaler=make_scaler(config.precision, world.device),
        data=SimpleNamespace(  # type: ignore[arg-type]
            train=FixedLoader(batches, world.size, pack),
            val=None,
            imagenet_val=None,
            imagenet_v2=None,
        ),
        tokenizer=None,
        context_length=77,
        start_epoch=0,
        pack=pack,
    )
    folder = RunFolder(Path("none"), "none", None, RunLock(None))
    return build_run(config, world, parts, folder, Writers([]), StopRequest())


def our_model(raw: Mapping[str, Any], weights: Mapping[str, Tensor], siglip: bool = False) -> CLIP:
    config = dict(raw)
    if siglip:
        config |= {"init_logit_bias": -10.0}
    model = CLIP(parse_config(config, "test"), output_dict=True)
    model.load_state_dict(weights)
    return model


def our_trajectory(
    model: CLIP,
    batches: Sequence[tuple[Tensor, Tensor]],
    flags: Sequence[str],
    *,
    plant: Callable[[Run], Run] = lambda run: run,
) -> Trajectory:
    """`plant` may put an error into the run, to see that the comparison notices."""
    config = our_config(flags)
    prepare_for_training(model, config.model)
    result = Trajectory(before=copy.deepcopy(model.state_dict()))
    run = plant(our_run(model, model, batches, config, World()))
    recorder = _Recorder(run.step, lambda: None)
    object.__setattr__(run, "step", recorder)
    train_epoch(run, 0)
    result.losses, result.after = recorder.losses, copy.deepcopy(model.state_dict())
    return result


def compare(ours: Trajectory, theirs: Trajectory, *, loss_tolerance: float) -> dict[str, float]:
    """Raise AssertionError where the two runs differ by more than the bars; return the figures."""
    assert len(ours.losses) == len(theirs.losses)
    worst_loss = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    fall = 1 - theirs.losses[-1] / theirs.losses[0]
    move, move_ref = ours.movement(), theirs.movement()
    assert list(move) == list(move_ref)
    for key, value in move.items():
        if key.endswith(
            "in_proj_bias"
        ):  # the key third has no true gradient: what moves it is rounding
            third = value.numel() // 3
            value[third : 2 * third] = 0
            move_ref[key][third : 2 * third] = 0
    difference = {k: (move[k] - move_ref[k]).norm().item() for k in move}
    size = {k: move_ref[k].norm().item() for k in move}
    total = (
        sum(d * d for d in difference.values()) ** 0.5 / sum(s * s for s in size.values()) ** 0.5
    )
    relative = {k: difference[k] / size[k] for k in move if size[k] > 0}
    still = [k for k in move if size[k] == 0 and difference[k] > 0]
    worst = max(relative, key=relative.__getitem__)
    figures = {
        "steps": len(ours.losses),
        "loss fall": fall,
        "worst loss difference": worst_loss,
        "movement difference": total,
        f"worst tensor ({worst})": relative[worst],
    }
    print({k: float(f"{v:.3g}") for k, v in figures.items()})
    assert not still, f"moved here and not there: {still}"
    assert worst_loss <= loss_tolerance, figures
    return {"fall": fall, "loss": worst_loss, "total": total, "tensor": relative[worst]}
