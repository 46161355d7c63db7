"""One training step of either trainer on a batch that is already on the device: what benchmarks run again and again.

Both trainers set torch's backends alike (TF32, cuDNN's search for the fastest convolution): call
`fastclip.train.precision.set_backend_precision` once before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastclip.train.distributed import World

Step = Callable[[], Any]


@dataclass(frozen=True)
class Resident:
    """A trainer with one batch on its device, whole and in parts."""

    model: Any
    images: Tensor  # as its model takes them
    texts: Any  # likewise
    autocast: Callable[[], Any]
    loss: Callable[..., dict[str, Tensor]]  # of the model's outputs and output_dict=True
    step: Step

    def image_features(self) -> Tensor:
        """Unit-norm, (B, D)."""
        with self.autocast():
            features: Tensor = self.model.encode_image(self.images, normalize=True)
        return features

    def text_features(self) -> Tensor:
        """Unit-norm, (B, D)."""
        with self.autocast():
            features: Tensor = self.model.encode_text(self.texts, normalize=True)
        return features

    def total_loss(self) -> Tensor:
        """0-dim."""
        with self.autocast():
            outputs = self.model(self.images, self.texts)
            return torch.stack(list(self.loss(**outputs, output_dict=True).values())).sum()


def our_resident(
    flags: Sequence[str],
    images: Tensor,  # uint8 (B, H, W, 3), on the device
    texts: Tensor,  # int64 (B, L), on the CPU, where the loader packs
    world: World | None = None,  # None: this process alone
) -> Resident:
    """The trainer's own parts, put together as `train/parts.py` and `train/setup.py` do."""
    from fastclip.config.parse import parse_args
    from fastclip.config.resolve import resolve
    from fastclip.data.batch import Batch, PackedText
    from fastclip.data.packing import TextPacker, rows_for
    from fastclip.model.factory import create_training_model
    from fastclip.optim.build import build_optimizer
    from fastclip.optim.update import Update
    from fastclip.train.attention import set_up_attention
    from fastclip.train.compiling import set_up_compiling
    from fastclip.train.distributed import World
    from fastclip.train.losses import gather_early, make_loss
    from fastclip.train.packed_captions import choose_packing
    from fastclip.train.parts import prepare_for_training, wrap
    from fastclip.train.precision import autocast_factory, input_dtype
    from fastclip.train.recompute_choice import recompute_less_if_it_fits
    from fastclip.train.step import Forward, PlainStep

    config, world = resolve(parse_args(flags)), world or World(device=images.device)
    model: Any = create_training_model(
        config.model, precision=config.precision, device=world.device, siglip=False
    )
    prepare_for_training(model, config.model)
    rule, packer = choose_packing(model, None, config), None
    set_up_attention(
        model, None, config, world.device, packed=rule is not None, teacher_packed=False
    )
    set_up_compiling(model, config, world.device)
    batch = Batch(images, texts.to(images.device))
    if rule is not None:
        packer = TextPacker(rule, rows_for(rule.lengths(texts.numpy()), *texts.shape))
        ids, positions, starts, ends, _ = packer(texts)
        on_device = (each.to(images.device) for each in (ids, positions, starts, ends))
        batch = Batch(images, PackedText(*on_device))
    loader: Any = SimpleNamespace(packer=packer)
    recompute_less_if_it_fits(model, None, loader, config, world)
    update = Update(
        build_optimizer(config.optim, model),
        model.logit_scale,
        clip_norm=config.optim.grad_clip_norm,
        scaler=None,
        nonfinite=config.optim.nonfinite,
    )
    loss = make_loss(config.loss, world, captions=False)
    autocast = autocast_factory(config.precision, world.device)
    wrapped = wrap(model, config, world).train()
    towers = gather_early(wrapped, loss, world, model=model, accum_freq=1)
    forward = Forward(towers, None, input_dtype(config.precision))
    step = PlainStep(forward, loss, update, autocast)
    return Resident(model, batch.images, batch.texts, autocast, loss, lambda: step([batch]))


def our_step(
    flags: Sequence[str], images: Tensor, texts: Tensor, world: World | None = None
) -> Step:
    """The step of `our_resident`."""
    return our_resident(flags, images, texts, world).step


def reference_resident(
    flags: Sequence[str],
    images: Tensor,  # uint8 (B, H, W, 3), on the device
    texts: Tensor,  # int64 (B, L)
    *,
    compiled: bool = False,
) -> Resident:
    """OpenCLIP's model, loss and optimiser, as its `train_one_epoch` joins them; checkpointed where `flags` say so."""
    import open_clip
    from open_clip_train import params
    from open_clip_train.precision import get_autocast

    args, device = params.parse_args(list(flags)), images.device
    model: Any = open_clip.create_model(
        args.model, precision=args.precision, device=device, output_dict=True
    ).train()
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    # as its loader hands them on
    pixels = ((images.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()
    texts = texts.to(device)
    loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
    plain = ("bias", "ln", "bn", "logit_scale")
    named = list(model.named_parameters())
    kept = [p for n, p in named if p.ndim < 2 or any(part in n for part in plain)]
    decayed = [p for n, p in named if p.ndim >= 2 and not any(part in n for part in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": args.wd}],
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        eps=args.eps,
    )
    autocast = get_autocast(args.precision, device_type=device.type)
    # static shapes: one graph for this batch size, as a run has it
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        with autocast():
            total = sum(loss(**forward(pixels, texts), output_dict=True).values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return Resident(model, pixels, texts, autocast, loss, step)


def reference_step(
    flags: Sequence[str], images: Tensor, texts: Tensor, *, compiled: bool = False
) -> Step:
    """The step of `reference_resident`."""
    return reference_resident(flags, images, texts, compiled=compiled).step
