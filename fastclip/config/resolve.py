"""From the parsed flags to one `TrainConfig`; after this nothing sees the namespace."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from fastclip.config.aug_cfg import make_augment_config
from fastclip.config.cluster import ClusterConfig
from fastclip.config.images import AugmentConfig
from fastclip.config.train_config import (
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    EvalConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from fastclip.errors import UserError

T = TypeVar("T")

# flag -> why it is refused, and what to do instead
REFUSED: dict[str, tuple[str, str]] = {
    "--horovod": (
        "processes work together through torch.distributed only",
        "drop the flag and start them with torchrun or srun",
    ),
    "--use-bnb-linear": (
        "its 8-bit layers need triton 2.0 and change what is computed",
        "drop the flag; --precision amp_bf16 is the fast choice",
    ),
    "--torchscript": (
        "torch has deprecated TorchScript, and it cannot hold the fast paths",
        "use --torchcompile, or drop the flag",
    ),
    "--trace": (
        "a traced model cannot be trained, and OpenCLIP cannot trace its own ViT models",
        "use --torchcompile, or drop the flag",
    ),
}


def resolve(namespace: argparse.Namespace) -> TrainConfig:
    """The run that the flags describe.

    Raises UserError, one line per problem, for flags that are refused, contradict each other or
    have a value that cannot work. Nothing on the machine is looked at: no file, no device.
    """
    n = namespace
    collect = _Collector()
    for flag, (why, instead) in REFUSED.items():
        if getattr(n, flag[2:].replace("-", "_")):
            collect.problems.append(f"{flag} is refused: {why}; {instead}")
    augment = collect(lambda: make_augment_config(n.aug_cfg), AugmentConfig())
    factors = collect(lambda: _factors(n.train_data_upsampling_factors), None)
    image_size = collect(lambda: _image_size(n.force_image_size), None)
    data = collect(
        lambda: _fill(
            DataConfig,
            n,
            # the reference takes an empty text for "not given", with these two only
            train_data=n.train_data or None,
            val_data=n.val_data or None,
            train_data_upsampling_factors=factors,
            augment=augment,
            fast_resize=not n.no_fast_resize,
        ),
        # enough for the checks across slices to be right about what there is to do
        DataConfig(
            train_data=n.train_data or None,
            val_data=n.val_data or None,
            imagenet_val=n.imagenet_val or None,
            imagenet_v2=n.imagenet_v2 or None,
            dataset_type=n.dataset_type,
            train_num_samples=1,
        ),
    )
    model = collect(lambda: _model(n, image_size), ModelConfig())
    loss = collect(
        lambda: _fill(
            LossConfig,
            n,
            # the reference reads it with --siglip only, and an empty text as "not given"
            loss_dist_impl=(n.loss_dist_impl or None) if n.siglip else None,
            backend=n.loss_backend,
        ),
        LossConfig(),
    )
    optim = collect(lambda: _fill(OptimConfig, n), OptimConfig())
    log = collect(
        lambda: _fill(
            LogConfig,
            n,
            # reference: the words are looked for anywhere in the text
            tensorboard="tensorboard" in n.report_to or "all" in n.report_to,
            wandb="wandb" in n.report_to or "all" in n.report_to,
        ),
        LogConfig(),
    )
    cluster = collect(lambda: _fill(ClusterConfig, n), ClusterConfig())
    config = collect(
        lambda: _fill(
            TrainConfig,
            n,
            model=model,
            data=data,
            loss=loss,
            optim=optim,
            checkpoint=_fill(CheckpointConfig, n),
            log=log,
            evaluation=_fill(EvalConfig, n),
            distributed=_fill(DistributedConfig, n),
            cluster=cluster,
            flags=_flags(n, image_size),
        ),
        None,
    )
    if config is None or collect.problems:
        raise UserError("\n".join(collect.problems))
    return config


def resolve_model(namespace: argparse.Namespace) -> ModelConfig:
    """The model that the flags describe, whatever the others say. Raises UserError."""
    return _model(namespace, _image_size(namespace.force_image_size))


def _model(n: argparse.Namespace, image_size: int | tuple[int, int] | None) -> ModelConfig:
    return _fill(
        ModelConfig,
        n,
        name=n.model,
        force_image_size=image_size,
        image_mean=_tuple(n.image_mean),
        image_std=_tuple(n.image_std),
        packed_text=not n.no_packed_text,
        prune_last_block=not n.no_prune_last_block,
        fused_patch_embed=not n.no_fused_patch_embed,
        fused_pointwise=not n.no_fused_pointwise,
    )


class _Collector:
    """Goes on after a UserError, with a stand-in, so that one start reports every problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, make: Callable[[], T], stand_in: T) -> T:
        try:
            return make()
        except UserError as error:
            self.problems += [line for line in str(error).split("\n") if line not in self.problems]
            return stand_in


def _fill(slice_type: Callable[..., T], namespace: argparse.Namespace, **computed: Any) -> T:
    """A slice whose fields are the flags of the same name, except those in `computed`."""
    names = {field.name for field in fields(slice_type)} - set(computed)  # type: ignore[arg-type]
    return slice_type(**{name: getattr(namespace, name) for name in names}, **computed)


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _factors(text: str | None) -> tuple[float, ...] | None:
    """`1::2::0.5` -> (1.0, 2.0, 0.5)."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split("::"))
    except ValueError:
        raise UserError(
            f"--train-data-upsampling-factors {text!r}: write one number per source, such as "
            f"1::2::0.5"
        ) from None


def _image_size(values: Sequence[int] | None) -> int | tuple[int, int] | None:
    """One number is a square, two are height and width, in pixels."""
    if values is None:
        return None
    if len(values) > 2:
        raise UserError(
            f"--force-image-size takes one number, or height and width; got {len(values)} numbers"
        )
    return values[0] if len(values) == 1 else (values[0], values[1])


def _flags(
    namespace: argparse.Namespace, image_size: int | tuple[int, int] | None
) -> dict[str, object]:
    """Every flag by dest, sorted, as in the reference's `params.txt` (a lone size is a number)."""
    flags = dict(sorted(vars(namespace).items()))
    if isinstance(image_size, int):
        flags["force_image_size"] = image_size
    return flags
