"""One training run, fully described: frozen slices, one per room.

Names, defaults and meanings are those of OpenCLIP 3.3.0's flags unless a comment says otherwise.
Checks of a single slice are in its `__post_init__`, checks across slices in
`TrainConfig.__post_init__`; checks that need the machine (files exist, a GPU is there) belong to
the room that opens the file or the device. A check refuses what the reference cannot run either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from fastclip.config.cluster import ClusterConfig
from fastclip.config.images import AugmentConfig, Interpolation, ResizeMode
from fastclip.errors import UserError

AllReduceDtype = Literal["fp32", "bf16"]
DatasetType = Literal["webdataset", "csv", "synthetic", "auto"]
Decoder = Literal["auto", "dali", "pillow"]
LossBackend = Literal["auto", "triton", "torch"]
NonFinitePolicy = Literal["skip", "stop", "ignore"]
AttentionBackend = Literal["auto", "sdpa", "sdpa-fp32", "varlen", "flash-attn-2", "flash-attn-3"]
OptimizerImpl = Literal["auto", "torch", "apex"]
RecomputeChoice = Literal["auto", "none", "pointwise", "full"]
LRScheduler = Literal["cosine", "const", "const-cooldown"]
DistImpl = Literal["bidir", "shift", "reduce", "gather"]
SyncProtocol = Literal["s3", "fsspec"]
Precision = Literal[
    "amp", "amp_bf16", "amp_bfloat16", "bf16", "fp16", "pure_bf16", "pure_fp16", "fp32"
]
# float32 weights, and no loss scaling
_FP32_WEIGHTS_UNSCALED: tuple[Precision, ...] = ("amp_bf16", "amp_bfloat16", "fp32")


class _Checks:
    """Notes what is wrong with one slice, and raises UserError with a line for each."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def refuse_if(self, wrong: bool, message: str) -> None:
        if wrong:
            self.problems.append(message)

    def positive(self, flag: str, value: float | None) -> None:
        if value is not None and not value > 0:  # NaN is not
            self.problems.append(f"{flag} {value}: must be greater than 0")

    def not_negative(self, flag: str, value: float | None) -> None:
        if value is not None and value < 0:
            self.problems.append(f"{flag} {value}: must be 0 or greater")

    def finite(self, flag: str, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            self.problems.append(f"{flag} {value}: must be a finite number")

    def done(self) -> None:
        if self.problems:
            raise UserError("\n".join(self.problems))


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
    fast_resize: bool = True  # ours
    allow_pipe_from_files: bool = False  # ours
    max_bad_fraction: float = 1.0  # ours; of the samples that a rank has met
    shard_cache: str | None = None  # ours; a folder
    shard_cache_gb: float = 100.0  # ours; 10^9 bytes

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.positive("--batch-size", self.batch_size)
        checks.not_negative("--workers", self.workers)
        checks.refuse_if(
            not 0 <= self.max_bad_fraction <= 1,
            f"--max-bad-fraction {self.max_bad_fraction}: must be between 0 and 1",
        )
        checks.refuse_if(
            self.shard_cache == "", "--shard-cache is empty: give a folder, or leave the flag out"
        )
        checks.refuse_if(
            not 0 < self.shard_cache_gb < math.inf,
            f"--shard-cache-gb {self.shard_cache_gb}: must be greater than 0, and finite",
        )
        if self.trains:
            checks.positive("--train-num-samples", self.train_num_samples)
        checks.refuse_if(
            self.dataset_type == "synthetic" and self.train_num_samples is None,
            "--dataset-type synthetic needs --train-num-samples: how many samples an epoch has",
        )
        for flag, folder in (
            ("--imagenet-val", self.imagenet_val),
            ("--imagenet-v2", self.imagenet_v2),
        ):
            checks.refuse_if(folder == "", f"{flag} is empty: give a folder, or leave the flag out")
        factors = self.train_data_upsampling_factors
        if (
            factors is not None
            and self.train_data is not None
            and self._reads_shards(self.train_data)
        ):
            sources = len(self.train_data.split("::"))
            checks.refuse_if(
                not self.dataset_resampled,
                "--train-data-upsampling-factors weights shards that are drawn with replacement: "
                "add --dataset-resampled, or drop the factors",
            )
            checks.refuse_if(
                len(factors) != sources,
                f"--train-data-upsampling-factors has {len(factors)} numbers and --train-data "
                f"{sources} "
                "sources: give one for each, joined by ::",
            )
            checks.refuse_if(
                not all(math.isfinite(f) and f >= 0 for f in factors) or sum(factors) == 0,
                "--train-data-upsampling-factors: must be 0 or greater, and one of them greater",
            )
        checks.done()

    @property
    def trains(self) -> bool:
        """False for an evaluation-only run."""
        return self.train_data is not None or self.dataset_type == "synthetic"

    def _reads_shards(self, source: str) -> bool:
        """False where `source` is certainly no shards: only shards know sampling factors."""
        if self.dataset_type == "auto":
            return source.rsplit(".", maxsplit=1)[-1] not in ("csv", "tsv")
        return self.dataset_type == "webdataset"


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
    packed_text: bool = True  # ours
    prune_last_block: bool = True  # ours
    fused_patch_embed: bool = True  # ours
    fused_pointwise: bool = True  # ours
    recompute: RecomputeChoice = "auto"  # ours
    attention: AttentionBackend = "auto"  # ours
    tokenizer: str | None = None  # ours: a local tokenizer.json, or a folder with one
    unsafe_load: bool = False  # ours

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.refuse_if(not self.name, "--model is empty: give a model's name, such as ViT-B-32")
        checks.refuse_if(
            self.torchcompile and not self.fused_pointwise,
            "--torchcompile compiles what --no-fused-pointwise wants left alone: drop one of them",
        )
        for flag, values in (("--image-mean", self.image_mean), ("--image-std", self.image_std)):
            checks.refuse_if(
                values is not None and len(values) not in (1, 3),
                f"{flag} takes 1 or 3 numbers, got {len(values or ())}",
            )
            for value in values or ():
                checks.finite(flag, value)
        checks.refuse_if(
            0.0 in (self.image_std or ()),
            "--image-std 0: pictures are divided by it, so it cannot be 0",
        )
        size = self.force_image_size
        for pixels in size if isinstance(size, tuple) else (size,):
            checks.positive("--force-image-size", pixels)
        checks.positive("--force-context-length", self.force_context_length)
        dropout = self.force_patch_dropout
        checks.refuse_if(
            dropout is not None and not 0 <= dropout < 1,
            f"--force-patch-dropout {dropout}: must be at least 0 and below 1",
        )
        checks.not_negative("--lock-image-unlocked-groups", self.lock_image_unlocked_groups)
        checks.not_negative("--lock-text-unlocked-layers", self.lock_text_unlocked_layers)
        checks.done()


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    siglip: bool = False
    loss_dist_impl: DistImpl | None = None
    local_loss: bool = False
    gather_with_grad: bool = False
    coca_caption_loss_weight: float = 2.0
    coca_contrastive_loss_weight: float = 1.0
    distill_model: str | None = None
    distill_pretrained: str | None = None
    backend: LossBackend = "auto"  # ours

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.refuse_if(
            self.loss_dist_impl not in (None, *get_args(DistImpl)),
            f"--loss-dist-impl {self.loss_dist_impl!r}: choose bidir, shift, reduce or gather",
        )
        checks.finite("--coca-caption-loss-weight", self.coca_caption_loss_weight)
        checks.finite("--coca-contrastive-loss-weight", self.coca_contrastive_loss_weight)
        checks.done()

    @property
    def distill(self) -> bool:
        """Reference: distillation is on only when both flags are given."""
        return self.distill_model is not None and self.distill_pretrained is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    opt: str = "adamw"  # or timm/NAME
    lr: float | None = 5e-4  # None only with timm/NAME, as the next three
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
    optimizer_impl: OptimizerImpl = "auto"  # ours; who computes AdamW

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.positive("--accum-freq", self.accum_freq)
        checks.not_negative("--warmup", self.warmup)
        checks.not_negative("--epochs-cooldown", self.epochs_cooldown)
        # infinity clips nothing, and is allowed
        checks.positive("--grad-clip-norm", self.grad_clip_norm)
        for flag, value in (
            ("--lr", self.lr),
            ("--beta1", self.beta1),
            ("--beta2", self.beta2),
            ("--eps", self.eps),
            ("--wd", self.wd),
            ("--momentum", self.momentum),
            ("--lr-cooldown-end", self.lr_cooldown_end),
            ("--lr-cooldown-power", self.lr_cooldown_power),
        ):
            checks.finite(flag, value)
        name = self.opt.lower()  # the reference ignores case here
        if name == "adamw":
            # torch's AdamW refuses the same, once the model is on the GPU
            for flag, value in (("--lr", self.lr), ("--eps", self.eps), ("--wd", self.wd)):
                checks.not_negative(flag, value)
            for flag, value in (("--beta1", self.beta1), ("--beta2", self.beta2)):
                checks.refuse_if(
                    value is not None and math.isfinite(value) and not 0 <= value < 1,
                    f"{flag} {value}: must be at least 0 and below 1",
                )
        else:
            checks.refuse_if(
                not name.startswith("timm/"), f"--opt {self.opt!r}: choose adamw or timm/NAME"
            )
            checks.refuse_if(
                self.optimizer_impl != "auto",
                f"--optimizer-impl {self.optimizer_impl} is for --opt adamw, not for {self.opt}: "
                "drop one of the two",
            )
        checks.refuse_if(
            self.lr_scheduler not in get_args(LRScheduler),
            f"--lr-scheduler {self.lr_scheduler!r}: choose cosine, const or const-cooldown",
        )
        checks.done()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    save_frequency: int = 1  # epochs; 0 = only after the last
    save_most_recent: bool = False
    delete_previous_checkpoint: bool = False
    resume: str | None = None  # a path, or "latest"
    remote_sync: str | None = None
    remote_sync_frequency: int = 300  # seconds
    remote_sync_protocol: SyncProtocol = "s3"
    unsafe_load: bool = False  # ours
    save_every_n_steps: int = 0  # ours, as the next; optimiser steps; 0 = off
    save_every_minutes: float = 15.0  # 0 = off
    keep_last: int = 0  # ours; epoch_K.pt files; 0 = all

    @property
    def files_kept(self) -> int:
        """How many epoch_K.pt stay; 0 for all."""
        return 1 if self.delete_previous_checkpoint else self.keep_last

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.not_negative("--keep-last", self.keep_last)
        checks.refuse_if(
            self.delete_previous_checkpoint and self.keep_last > 1,
            f"--keep-last {self.keep_last} with --delete-previous-checkpoint, which keeps one: leave one of them out",
        )
        checks.not_negative("--save-every-n-steps", self.save_every_n_steps)
        checks.not_negative("--save-every-minutes", self.save_every_minutes)
        checks.finite("--save-every-minutes", self.save_every_minutes)
        if self.remote_sync is not None:
            checks.refuse_if(
                not self.remote_sync, "--remote-sync is empty: give a place, or leave the flag out"
            )
            checks.positive("--remote-sync-frequency", self.remote_sync_frequency)
        if self.remote_sync and self.resume == "latest":
            checks.refuse_if(
                self.save_most_recent,
                "--resume latest with --remote-sync cannot be combined with --save-most-recent: "
                "epoch_latest.pt is never copied to the remote",
            )
            checks.refuse_if(
                self.remote_sync_protocol != "s3",
                "--resume latest with --remote-sync needs --remote-sync-protocol s3",
            )
        checks.done()


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
    profile: int = 0  # ours; steps

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.positive("--log-every-n-steps", self.log_every_n_steps)
        checks.not_negative("--profile", self.profile)
        checks.refuse_if(
            self.profile > 0 and not self.enabled,
            f"--profile {self.profile} writes into the run's folder, and --logs none makes none: "
            "drop one of the two",
        )
        checks.done()

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
    allreduce_dtype: AllReduceDtype = "fp32"  # ours


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
    cluster: ClusterConfig = field(default_factory=ClusterConfig)  # ours
    precision: Precision = "amp"
    epochs: int = 32
    seed: int = 0
    deterministic: bool = False  # ours
    flags: Mapping[str, object] = field(default_factory=dict)  # all flags, for params.txt and wandb

    def __post_init__(self) -> None:
        checks = _Checks()
        checks.not_negative("--epochs", self.epochs)
        # numpy's seeds; every rank adds its number
        checks.refuse_if(
            not 0 <= self.seed < 2**32, f"--seed {self.seed}: must be from 0 to {2**32 - 1}"
        )
        data = self.data
        checks.refuse_if(
            not self.trains and not any((data.val_data, data.imagenet_val, data.imagenet_v2)),
            "no data: give --train-data (training), or --val-data, --imagenet-val or --imagenet-v2 "
            "(evaluation)",
        )
        checks.refuse_if(
            self.cluster.dry_run and not self.trains,
            "--dry-run plans training: give --train-data",
        )
        coca = "coca" in self.model.name.lower()
        if self.loss.distill:
            checks.refuse_if(
                self.optim.accum_freq != 1,
                "--distill-model works with --accum-freq 1 only, as in OpenCLIP",
            )
            checks.refuse_if(coca, "--distill-model does not work with CoCa models, as in OpenCLIP")
        if self.trains:
            checks.refuse_if(
                self.loss.siglip and (self.loss.distill or coca),
                "--siglip cannot be combined with a distill or CoCa loss: those have no logit bias",
            )
            self._check_optimiser(checks)
        checks.done()

    def _check_optimiser(self, checks: _Checks) -> None:
        """What an optimiser and its schedule need; an evaluation builds neither."""
        optim = self.optim
        if optim.opt.lower() != "adamw":
            checks.refuse_if(
                optim.lr is None and not optim.skip_scheduler,
                f"--opt {optim.opt} needs --lr: there is no default for timm's optimisers",
            )
            checks.refuse_if(
                (optim.beta1 is None) != (optim.beta2 is None),
                f"--opt {optim.opt}: give both --beta1 and --beta2, or neither",
            )
        checks.refuse_if(
            optim.optimizer_impl == "apex" and self.precision not in _FP32_WEIGHTS_UNSCALED,
            f"--optimizer-impl apex does not go with --precision {self.precision}: apex takes a scaled "
            "loss and low-precision weights in another way than torch; choose "
            f"{', '.join(_FP32_WEIGHTS_UNSCALED)}, or drop the flag",
        )
        checks.refuse_if(
            optim.lr_scheduler == "const-cooldown" and optim.epochs_cooldown is None,
            "--lr-scheduler const-cooldown needs --epochs-cooldown",
        )

    @property
    def trains(self) -> bool:
        """False for an evaluation-only run."""
        return self.data.trains
