"""One training run, fully described: frozen slices, one per room.

Names, defaults and meanings are those of OpenCLIP 3.3.0's flags unless a comment says otherwise. Checks of a
single slice are in its `__post_init__`, checks across slices in `TrainConfig.__post_init__`; checks that need the
machine (files exist, a GPU is there) belong to the room that opens the file or the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from fastclip.config.images import AugmentConfig, Interpolation, ResizeMode
from fastclip.errors import UserError

DatasetType = Literal["webdataset", "csv", "synthetic", "auto"]
Decoder = Literal["auto", "dali", "pillow"]
LossBackend = Literal["auto", "triton", "torch"]
NonFinitePolicy = Literal["skip", "stop", "ignore"]
LRScheduler = Literal["cosine", "const", "const-cooldown"]
Precision = Literal[
    "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16", "fp32"
]


def _positive(flag: str, value: float) -> None:
    if value <= 0:
        raise UserError(f"{flag} {value}: must be greater than 0")


def _not_negative(flag: str, value: float) -> None:
    if value < 0:
        raise UserError(f"{flag} {value}: must be 0 or greater")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    train_data: str | None = None
    train_data_upsampling_factors: tuple[float, ...] | None = None  # one per `::` source
    val_data: str | None = None
    train_num_samples: int | None = None
    val_num_samples: int | None = None
    dataset_type: DatasetType = "auto"
    dataset_resampled: bool = False
    csv_separator: str = "\t"
    csv_img_key: str = "filepath"
    csv_caption_key: str = "title"
    imagenet_val: str | None = None
    imagenet_v2: str | None = None
    workers: int = 4  # loader processes per rank
    batch_size: int = 64  # per rank
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    decoder: Decoder = "auto"  # ours
    allow_pipe_from_files: bool = False  # ours

    def __post_init__(self) -> None:
        _positive("--batch-size", self.batch_size)
        _not_negative("--workers", self.workers)
        if self.train_num_samples is not None:
            _positive("--train-num-samples", self.train_num_samples)
        if self.train_data_upsampling_factors is not None and not self.dataset_resampled:
            raise UserError(
                "--train-data-upsampling-factors weights shards that are drawn with replacement: "
                "add --dataset-resampled, or drop the factors"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    name: str = "RN50"
    pretrained: str = ""
    pretrained_image: bool = False
    force_image_size: int | tuple[int, int] | None = None
    force_context_length: int | None = None
    force_quick_gelu: bool = False
    force_patch_dropout: float | None = None
    force_custom_text: bool = False
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    image_interpolation: Interpolation | None = None
    image_resize_mode: ResizeMode | None = None
    cache_dir: str | None = None
    grad_checkpointing: bool = False
    torchcompile: bool = False
    lock_image: bool = False
    lock_image_unlocked_groups: int = 0
    lock_image_freeze_bn_stats: bool = False
    lock_text: bool = False
    lock_text_unlocked_layers: int = 0
    lock_text_freeze_layer_norm: bool = False
    tokenizer: str | None = None  # ours: a local tokenizer.json, or a folder with one
    unsafe_load: bool = False  # ours

    def __post_init__(self) -> None:
        for flag, value in (("--image-mean", self.image_mean), ("--image-std", self.image_std)):
            if value is not None and len(value) not in (1, 3):
                raise UserError(f"{flag} takes 1 or 3 numbers, got {len(value)}")
        if self.force_patch_dropout is not None and not 0 <= self.force_patch_dropout < 1:
            raise UserError(
                f"--force-patch-dropout {self.force_patch_dropout}: must be at least 0 and below 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    siglip: bool = False
    loss_dist_impl: Literal["bidir", "shift", "reduce", "gather"] | None = None
    local_loss: bool = False
    gather_with_grad: bool = False
    coca_caption_loss_weight: float = 2.0
    coca_contrastive_loss_weight: float = 1.0
    distill_model: str | None = None
    distill_pretrained: str | None = None
    backend: LossBackend = "auto"  # ours

    @property
    def distill(self) -> bool:
        """Reference: distillation is on only when both flags are given."""
        return self.distill_model is not None and self.distill_pretrained is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    opt: str = "adamw"  # or timm/NAME
    lr: float | None = 5e-4  # None only with timm/NAME
    beta1: float | None = 0.9
    beta2: float | None = 0.98
    eps: float | None = 1e-6
    wd: float = 0.2
    momentum: float | None = None
    warmup: int = 10000  # optimiser steps
    lr_scheduler: LRScheduler = "cosine"
    skip_scheduler: bool = False
    epochs_cooldown: int | None = None
    lr_cooldown_end: float = 0.0
    lr_cooldown_power: float = 1.0
    accum_freq: int = 1
    grad_clip_norm: float | None = None
    nonfinite: NonFinitePolicy = "skip"  # ours

    def __post_init__(self) -> None:
        _positive("--accum-freq", self.accum_freq)
        _not_negative("--warmup", self.warmup)
        if self.opt != "adamw" and not self.opt.startswith("timm/"):
            raise UserError(f"--opt {self.opt!r}: choose adamw or timm/NAME")
        if self.opt.startswith("timm/"):
            for flag, value in (("--lr", self.lr), ("--eps", self.eps)):
                if value is None:
                    raise UserError(f"--opt {self.opt} needs {flag}: timm's optimisers get no default")
            if (self.beta1 is None) != (self.beta2 is None):
                raise UserError(f"--opt {self.opt}: give both --beta1 and --beta2, or neither")
        if self.lr_scheduler not in get_args(LRScheduler):
            raise UserError(
                f"--lr-scheduler {self.lr_scheduler!r}: choose cosine, const or const-cooldown"
            )
        if self.lr_scheduler == "const-cooldown" and self.epochs_cooldown is None:
            raise UserError("--lr-scheduler const-cooldown needs --epochs-cooldown")
        if self.grad_clip_norm is not None:
            _positive("--grad-clip-norm", self.grad_clip_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    save_frequency: int = 1  # epochs; 0 = only after the last
    save_most_recent: bool = False
    delete_previous_checkpoint: bool = False
    resume: str | None = None  # a path, or "latest"
    remote_sync: str | None = None
    remote_sync_frequency: int = 300  # seconds
    remote_sync_protocol: Literal["s3", "fsspec"] = "s3"
    unsafe_load: bool = False  # ours


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    logs: str = "./logs/"
    log_local: bool = False
    name: str | None = None  # None: made from date, model, lr, batch size, workers, precision
    tensorboard: bool = False
    wandb: bool = False
    wandb_notes: str = ""
    wandb_project_name: str = "open-clip"
    debug: bool = False
    log_every_n_steps: int = 100  # optimiser steps
    copy_codebase: bool = False

    def __post_init__(self) -> None:
        _positive("--log-every-n-steps", self.log_every_n_steps)

    @property
    def enabled(self) -> bool:
        """Reference: `--logs none` keeps no checkpoints and starts no writers."""
        return bool(self.logs) and self.logs.lower() != "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    zeroshot_frequency: int = 2  # epochs; 0 = off; the last epoch always runs
    val_frequency: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    device: str = "cuda"
    dist_url: str | None = None
    dist_backend: str | None = None
    use_bn_sync: bool = False
    ddp_static_graph: bool = False
    no_set_device_rank: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    evaluation: EvalConfig
    distributed: DistributedConfig
    precision: Precision = "amp"
    epochs: int = 32
    seed: int = 0
    deterministic: bool = False  # ours
    flags: Mapping[str, object] = field(default_factory=dict)  # all flags, for params.txt and wandb

    def __post_init__(self) -> None:
        _positive("--epochs", self.epochs)
        data, loss = self.data, self.loss
        if data.train_data is None and data.dataset_type != "synthetic" and not any(
            (data.val_data, data.imagenet_val, data.imagenet_v2)
        ):
            raise UserError(
                "no data: give --train-data (training), or --val-data, --imagenet-val or --imagenet-v2 (evaluation)"
            )
        coca = "coca" in self.model.name.lower()
        if loss.distill and self.optim.accum_freq != 1:
            raise UserError("--distill-model works with --accum-freq 1 only, as in OpenCLIP")
        if loss.distill and coca:
            raise UserError("--distill-model does not work with CoCa models, as in OpenCLIP")
        if loss.siglip and (loss.distill or coca):
            raise UserError(
                "--siglip cannot be combined with a distill or CoCa loss: those have no logit bias"
            )
        if self.checkpoint.remote_sync and self.checkpoint.resume == "latest":
            if self.checkpoint.save_most_recent:
                raise UserError(
                    "--resume latest with --remote-sync cannot be combined with --save-most-recent: "
                    "epoch_latest.pt is never copied to the remote"
                )
            if self.checkpoint.remote_sync_protocol != "s3":
                raise UserError(
                    "--resume latest with --remote-sync needs --remote-sync-protocol s3"
                )

    @property
    def trains(self) -> bool:
        """False for an evaluation-only run."""
        return self.data.train_data is not None or self.data.dataset_type == "synthetic"
