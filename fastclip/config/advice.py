"""Flags that were given and do nothing, as in OpenCLIP: worth a line in the log, not an error."""

from __future__ import annotations

from fastclip.config.train_config import TrainConfig

# What compiles, computes or sends in training alone
_OF_TRAINING = ("torchcompile", "optimizer_impl", "allreduce_dtype", "profile")


def advice(config: TrainConfig, processes: int) -> list[str]:
    """One sentence per flag that this run of so many processes ignores, for the log at start; usually none."""
    model, data, loss, optim = config.model, config.data, config.loss, config.optim
    given = config.flags
    remarks = [
        (
            loss.siglip and (loss.local_loss or loss.gather_with_grad),
            "--local-loss and --gather-with-grad do nothing with --siglip: its loss is always "
            "local, with full gradients",
        ),
        (
            not loss.siglip and bool(given.get("loss_dist_impl")),
            "--loss-dist-impl does nothing without --siglip",
        ),
        (
            (loss.distill_model is None) != (loss.distill_pretrained is None),
            "no distillation: it needs both --distill-model and --distill-pretrained",
        ),
        (
            not model.lock_image
            and (model.lock_image_unlocked_groups > 0 or model.lock_image_freeze_bn_stats),
            "--lock-image-* flags do nothing without --lock-image",
        ),
        (
            not model.lock_text
            and (model.lock_text_unlocked_layers > 0 or model.lock_text_freeze_layer_norm),
            "--lock-text-* flags do nothing without --lock-text",
        ),
        (
            optim.momentum is not None and optim.opt.lower() == "adamw",
            "--momentum does nothing with --opt adamw",
        ),
        (
            optim.epochs_cooldown is not None and optim.lr_scheduler != "const-cooldown",
            "--epochs-cooldown does nothing without --lr-scheduler const-cooldown",
        ),
        (
            data.train_data_upsampling_factors is not None and not data.dataset_resampled,
            "--train-data-upsampling-factors does nothing here: it weights training shards",
        ),
        (
            data.dataset_type == "csv" and data.train_num_samples is not None,
            "--train-num-samples does nothing with csv data: all its rows are read",
        ),
        (
            processes == 1 and config.distributed.allreduce_dtype != "fp32",
            "--allreduce-dtype does nothing in a single process: no gradients travel",
        ),
        (
            not config.trains
            and any(given.get(name) not in (None, False, "auto", "fp32") for name in _OF_TRAINING),
            "this run only evaluates: "
            + ", ".join(f"--{name.replace('_', '-')}" for name in _OF_TRAINING)
            + " do nothing",
        ),
        (
            not config.log.enabled
            and (
                config.log.tensorboard
                or config.checkpoint.save_most_recent
                or config.checkpoint.save_every_n_steps > 0
            ),
            "--logs none keeps no checkpoints, no saves inside an epoch and no TensorBoard events",
        ),
    ]
    return [sentence for applies, sentence in remarks if applies]
