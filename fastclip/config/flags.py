"""The 90 flags of OpenCLIP 3.3.0's trainer: same names, types, defaults and choices.

One function per help group; within a group the order is the reference's. What a flag means is said
here once: `docs/flags.md` is written from these help texts.
"""

from __future__ import annotations

import argparse
from typing import get_args

from fastclip.config.aug_cfg import KeyValueAction
from fastclip.config.images import Interpolation, ResizeMode
from fastclip.config.train_config import DatasetType, Precision, SyncProtocol


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the reference to `parser`."""
    _data(parser)
    _pictures(parser)
    _model(parser)
    _locking(parser)
    _loss(parser)
    _optimisation(parser)
    _evaluation(parser)
    _checkpoints(parser)
    _logging(parser)
    _distributed(parser)


def _switch(group: argparse._ArgumentGroup, flag: str, text: str) -> None:
    group.add_argument(flag, action="store_true", default=False, help=text)


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--train-data",
        type=str,
        default=None,
        metavar="SOURCE",
        help="what to train on: shards ({0000..0099}.tar, several sources joined by ::, a folder "
        "of tars, "
        "an URL, pipe:COMMAND) or a csv/tsv file; without it the run only evaluates",
    )
    add(
        "--train-data-upsampling-factors",
        type=str,
        default=None,
        metavar="F::F",
        help="one weight per :: source, given to each of its shards; needs --dataset-resampled",
    )
    add(
        "--val-data",
        type=str,
        default=None,
        metavar="SOURCE",
        help="pictures and captions for retrieval metrics, of the same --dataset-type",
    )
    add(
        "--train-num-samples",
        type=int,
        default=None,
        metavar="SAMPLES",
        help="samples per epoch; needed for shards without a sizes.json beside them, and for "
        "synthetic data",
    )
    add(
        "--val-num-samples",
        type=int,
        default=None,
        metavar="SAMPLES",
        help="samples in --val-data, for display only: all of it is always read",
    )
    add(
        "--dataset-type",
        choices=list(get_args(DatasetType)),
        default="auto",
        help="auto goes by the ending of the path",
    )
    _switch(
        group,
        "--dataset-resampled",
        "draw training shards with replacement instead of going through all of them",
    )
    add(
        "--csv-separator",
        type=str,
        default="\t",
        metavar="TEXT",
        help="column separator of csv data; a tab unless given, also for .csv files",
    )
    add(
        "--csv-img-key",
        type=str,
        default="filepath",
        metavar="COLUMN",
        help="csv column with the path of the picture",
    )
    add(
        "--csv-caption-key",
        type=str,
        default="title",
        metavar="COLUMN",
        help="csv column with the caption",
    )
    add(
        "--workers",
        type=int,
        default=4,
        metavar="PROCESSES",
        help="loader processes per rank (per GPU)",
    )
    add(
        "--batch-size",
        type=int,
        default=64,
        metavar="SAMPLES",
        help="samples per rank (per GPU) and micro-batch; an update sees this x ranks x "
        "--accum-freq",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the initial weights, the order of the data and the augmentation",
    )


def _pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    add = group.add_argument
    add(
        "--image-mean",
        type=float,
        nargs="+",
        default=None,
        metavar="MEAN",
        help="replaces the model's mean, of RGB values scaled to 0..1; 1 or 3 numbers",
    )
    add(
        "--image-std",
        type=float,
        nargs="+",
        default=None,
        metavar="STD",
        help="replaces the model's standard deviation, likewise",
    )
    add(
        "--image-interpolation",
        default=None,
        type=str,
        choices=list(get_args(Interpolation)),
        help="replaces the model's resize filter; in training it acts with use_timm only, "
        "otherwise bicubic",
    )
    add(
        "--image-resize-mode",
        default=None,
        type=str,
        choices=list(get_args(ResizeMode)),
        help="replaces the model's way to fit a picture, in evaluation only",
    )
    add(
        "--aug-cfg",
        nargs="*",
        default={},
        action=KeyValueAction,
        metavar="KEY=VALUE",
        help="training augmentation: scale, ratio, color_jitter, color_jitter_prob, "
        "gray_scale_prob, use_timm, "
        "re_prob, re_count; for instance scale='(0.4, 1.0)' or scale=0.4,1.0",
    )


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--cache-dir",
        type=str,
        default=None,
        metavar="FOLDER",
        help="where downloaded weights and tokenizers are kept",
    )
    add(
        "--precision",
        choices=list(get_args(Precision)),
        default="amp",
        help="number format: amp is fp16 autocast with a loss scaler, amp_bf16 = amp_bfloat16 is "
        "bf16 autocast, "
        "bf16 and fp16 hold the weights in that format too, except for normalisations; pure_* "
        "hold all in it",
    )
    add("--model", type=str, default="RN50", metavar="NAME", help="architecture by name")
    add(
        "--pretrained",
        default="",
        type=str,
        metavar="WEIGHTS",
        help="start from these weights: a checkpoint file, or a tag that the model has",
    )
    _switch(
        group,
        "--pretrained-image",
        "start a timm image tower from its ImageNet weights, where no CLIP weights are loaded",
    )
    _switch(
        group,
        "--grad-checkpointing",
        "keep fewer activations and compute them again in the backward pass: less memory, more "
        "work",
    )
    add(
        "--force-context-length",
        type=int,
        default=None,
        metavar="TOKENS",
        help="caption length, instead of the model's",
    )
    add(
        "--force-image-size",
        type=int,
        nargs="+",
        default=None,
        metavar="PIXELS",
        help="input size instead of the model's: one number (square), or height and width",
    )
    _switch(group, "--force-quick-gelu", "use QuickGELU in both towers whatever the model says")
    add(
        "--force-patch-dropout",
        default=None,
        type=float,
        metavar="SHARE",
        help="share of image patches left out in training, 0 to below 1, instead of the model's",
    )
    _switch(
        group,
        "--force-custom-text",
        "build the text tower as a module of its own (names text.* in checkpoints)",
    )
    _switch(group, "--torchscript", "refused: see --torchcompile")
    _switch(
        group,
        "--torchcompile",
        "compile each block with torch.compile, as is done on a GPU anyway; other models than "
        "fastclip's own as a whole",
    )
    _switch(group, "--trace", "refused: see --torchcompile")
    add(
        "--use-bnb-linear",
        default=None,
        metavar="CLASS",
        help="refused: see --precision amp_bf16",
    )


def _locking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("locked towers")
    add = group.add_argument
    _switch(group, "--lock-image", "do not train the image tower")
    add(
        "--lock-image-unlocked-groups",
        type=int,
        default=0,
        metavar="GROUPS",
        help="train the last so many layer groups of a locked image tower",
    )
    _switch(
        group,
        "--lock-image-freeze-bn-stats",
        "keep the BatchNorm statistics of locked image layers (ResNet and timm towers)",
    )
    _switch(group, "--lock-text", "do not train the text tower")
    add(
        "--lock-text-unlocked-layers",
        type=int,
        default=0,
        metavar="GROUPS",
        help="train the last so many layer groups of a locked text tower",
    )
    _switch(
        group,
        "--lock-text-freeze-layer-norm",
        "lock the LayerNorms of a locked text tower too",
    )


def _loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    add = group.add_argument
    _switch(
        group,
        "--local-loss",
        "each rank computes its own rows of the loss only: less work and memory, same gradients "
        "together with --gather-with-grad",
    )
    _switch(
        group,
        "--gather-with-grad",
        "let gradients flow to the features of other ranks; without it they are incomplete with "
        "--local-loss, and divided by the number of ranks otherwise",
    )
    add(
        "--coca-caption-loss-weight",
        type=float,
        default=2.0,
        metavar="W",
        help="CoCa models: weight of the caption loss",
    )
    add(
        "--coca-contrastive-loss-weight",
        type=float,
        default=1.0,
        metavar="W",
        help="CoCa models: weight of the contrastive loss",
    )
    add(
        "--distill-model",
        default=None,
        metavar="NAME",
        help="teacher architecture; acts together with --distill-pretrained",
    )
    add(
        "--distill-pretrained",
        default=None,
        metavar="WEIGHTS",
        help="weights of the teacher; acts together with --distill-model",
    )
    _switch(
        group,
        "--siglip",
        "sigmoid loss of SigLIP, with its initial scale (10) and bias (-10)",
    )
    add(
        "--loss-dist-impl",
        default=None,
        type=str,
        metavar="FORM",
        help="how SigLIP's features travel between ranks: bidir (if not given), shift, reduce or "
        "gather",
    )


def _optimisation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--epochs", type=int, default=32, metavar="EPOCHS", help="epochs to train, in all")
    add(
        "--epochs-cooldown",
        type=int,
        default=None,
        metavar="EPOCHS",
        help="length of the final decay of --lr-scheduler const-cooldown",
    )
    add(
        "--lr",
        type=float,
        default=None,
        metavar="RATE",
        help="peak learning rate; 5e-4 if not given, with --opt adamw",
    )
    add(
        "--beta1",
        type=float,
        default=None,
        metavar="BETA",
        help="Adam's first moment decay; 0.9 if not given",
    )
    add(
        "--beta2",
        type=float,
        default=None,
        metavar="BETA",
        help="Adam's second moment decay; if not given, 0.98 for models with ViT in their name, "
        "else 0.999",
    )
    add(
        "--eps",
        type=float,
        default=None,
        metavar="EPS",
        help="Adam's epsilon; if not given, 1e-6 for models with ViT in their name, else 1e-8",
    )
    add(
        "--wd",
        type=float,
        default=0.2,
        metavar="WD",
        help="weight decay; not for biases, normalisations and scales",
    )
    add(
        "--momentum",
        type=float,
        default=None,
        metavar="M",
        help="momentum of a timm optimiser",
    )
    add(
        "--warmup",
        type=int,
        default=10000,
        metavar="STEPS",
        help="optimiser steps in which the learning rate rises from near 0",
    )
    add(
        "--opt",
        type=str,
        default="adamw",
        metavar="NAME",
        help="adamw, or timm/NAME: then give --lr too, and --eps where that optimiser has one",
    )
    _switch(
        group,
        "--skip-scheduler",
        "keep the learning rate constant from the first step: no warm-up, no decay",
    )
    add(
        "--lr-scheduler",
        type=str,
        default="cosine",
        metavar="NAME",
        help="after warm-up: cosine (to 0), const, or const-cooldown",
    )
    add(
        "--lr-cooldown-end",
        type=float,
        default=0.0,
        metavar="RATE",
        help="learning rate at the end of the cooldown",
    )
    add(
        "--lr-cooldown-power",
        type=float,
        default=1.0,
        metavar="P",
        help="shape of the cooldown: 1 is linear",
    )
    add(
        "--accum-freq",
        type=int,
        default=1,
        metavar="BATCHES",
        help="micro-batches per optimiser step; they share one loss",
    )
    add(
        "--grad-clip-norm",
        type=float,
        default=None,
        metavar="NORM",
        help="scale gradients down to this global L2 norm",
    )


def _evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    add = group.add_argument
    add(
        "--imagenet-val",
        type=str,
        default=None,
        metavar="FOLDER",
        help="ImageNet validation pictures, one folder per class, for zero-shot accuracy",
    )
    add(
        "--imagenet-v2",
        type=str,
        default=None,
        metavar="FOLDER",
        help="ImageNet-V2 pictures, likewise",
    )
    add(
        "--zeroshot-frequency",
        type=int,
        default=2,
        metavar="EPOCHS",
        help="zero-shot accuracy every so many epochs and after the last; 0: never",
    )
    add(
        "--val-frequency",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="retrieval on --val-data every so many epochs and after the last; 0: never",
    )


def _checkpoints(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints")
    add = group.add_argument
    add(
        "--save-frequency",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="write epoch_N.pt every so many epochs and after the last; 0: after the last only",
    )
    _switch(group, "--save-most-recent", "write epoch_latest.pt after every epoch too")
    add(
        "--resume",
        default=None,
        type=str,
        metavar="CHECKPOINT",
        help="go on from this checkpoint; latest: from the newest of this run, or from nothing if "
        "there is none",
    )
    add(
        "--remote-sync",
        type=str,
        default=None,
        metavar="URL",
        help="copy the run's folder to this place as training goes on",
    )
    add(
        "--remote-sync-frequency",
        type=int,
        default=300,
        metavar="SECONDS",
        help="time between two copies",
    )
    add(
        "--remote-sync-protocol",
        choices=list(get_args(SyncProtocol)),
        default="s3",
        help="s3 uses the aws command, fsspec the Python package of that name",
    )
    _switch(
        group,
        "--delete-previous-checkpoint",
        "delete the checkpoint before, once the next one is written",
    )


def _logging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs")
    add = group.add_argument
    add(
        "--logs",
        type=str,
        default="./logs/",
        metavar="FOLDER",
        help="runs are written to FOLDER/NAME; none: keep no checkpoints and no TensorBoard events",
    )
    _switch(group, "--log-local", "one log file per node, out-RANK, instead of out.log of rank 0")
    add(
        "--name",
        type=str,
        default=None,
        metavar="NAME",
        help="name of the run; made from date, model, lr, batch size, workers and precision if "
        "not given",
    )
    add(
        "--report-to",
        default="",
        type=str,
        metavar="WRITERS",
        help="any of tensorboard, wandb, joined by a comma, or all",
    )
    add("--wandb-notes", default="", type=str, metavar="TEXT", help="notes on the run, for wandb")
    add(
        "--wandb-project-name",
        type=str,
        default="open-clip",
        metavar="NAME",
        help="project to log to, for wandb",
    )
    _switch(group, "--debug", "log more, and show tracebacks of errors that are usually one line")
    _switch(group, "--copy-codebase", "copy the source code into the run's folder")
    add(
        "--log-every-n-steps",
        type=int,
        default=100,
        metavar="STEPS",
        help="optimiser steps between two log lines",
    )


def _distributed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device and processes")
    add = group.add_argument
    _switch(group, "--use-bn-sync", "share BatchNorm statistics between ranks")
    add(
        "--device",
        default="cuda",
        type=str,
        metavar="DEVICE",
        help="cuda, cpu, mps or another torch device; the CPU if it is not there",
    )
    add(
        "--dist-url",
        default=None,
        type=str,
        metavar="URL",
        help="how processes find each other; env:// (MASTER_ADDR, MASTER_PORT) if not given",
    )
    add(
        "--dist-backend",
        default=None,
        type=str,
        metavar="NAME",
        help="nccl, gloo or another; by device if not given",
    )
    _switch(group, "--horovod", "refused: start the processes with torchrun or srun")
    _switch(
        group,
        "--ddp-static-graph",
        "tell DDP that every step uses the same parameters: faster, and allows re-computation",
    )
    _switch(
        group,
        "--no-set-device-rank",
        "use --device as given, not the GPU of the local rank (each process sees one GPU)",
    )
