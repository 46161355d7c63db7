"""Flags that OpenCLIP does not have. Left out, they choose the fastest exact way."""

from __future__ import annotations

import argparse
from typing import get_args

from fastclip.config.train_config import (
    AllReduceDtype,
    AttentionBackend,
    Decoder,
    LossBackend,
    NonFinitePolicy,
    OptimizerImpl,
    RecomputeChoice,
)


def add_own_flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Add the flags of this project to `parser` and return their actions."""
    group = parser.add_argument_group("fastclip's own")
    add = group.add_argument
    return [
        add(
            "--allreduce-dtype",
            choices=list(get_args(AllReduceDtype)),
            default="fp32",
            help="how gradients travel between ranks: bf16 halves the bytes and is not exact, fp32 "
            "sends them as they are",
        ),
        add(
            "--loss-backend",
            choices=list(get_args(LossBackend)),
            default="auto",
            help="who computes the loss: auto picks the fastest on this machine, a named one is "
            "never replaced",
        ),
        add(
            "--decoder",
            choices=list(get_args(Decoder)),
            default="auto",
            help="who decodes and augments pictures: auto is DALI on a GPU where it is installed, else "
            "Pillow, which is the faster one on a CPU",
        ),
        add(
            "--deterministic",
            action="store_true",
            default=False,
            help="same machine, same flags, same bits: only repeatable kernels, at some cost in "
            "speed",
        ),
        add(
            "--nonfinite",
            choices=list(get_args(NonFinitePolicy)),
            default="skip",
            help="a step with infinite or NaN gradients: skip leaves it out and ends the run "
            "after 10 in a row, "
            "stop ends the run at once, ignore applies it as OpenCLIP does",
        ),
        add(
            "--save-every-n-steps",
            type=int,
            default=0,
            metavar="N",
            help="save inside an epoch too, after every N optimiser steps, in LOGS/NAME/resume/; --resume latest "
            "goes on from there with the very next batch; 0 for never",
        ),
        add(
            "--save-every-minutes",
            type=float,
            default=15.0,
            metavar="M",
            help="the same after every M minutes; 0 for never",
        ),
        add(
            "--keep-last",
            type=int,
            default=0,
            metavar="N",
            help="keep the newest N epoch_K.pt and delete older ones, once the next one is written; copies "
            "made by --remote-sync stay; 0 for all",
        ),
        add(
            "--unsafe-load",
            action="store_true",
            default=False,
            help="load checkpoints that hold pickled Python objects: they can run any code, so "
            "trust their author",
        ),
        add(
            "--allow-pipe-from-files",
            action="store_true",
            default=False,
            help="run pipe: commands that stand in a list file, not only those on the command line",
        ),
        add(
            "--max-bad-fraction",
            type=float,
            default=1.0,
            metavar="F",
            help="end the run with exit status 65 when more than this part of the samples so far is bad; looked at "
            "from the 10,000th sample of a process on, and after each epoch. 1 never does",
        ),
        add(
            "--shard-cache",
            default=None,
            metavar="DIR",
            help="copy remote shards (https:, s3:, pipe: ...) to DIR, on a local disk, while they are read, and read "
            "the copies from then on; all processes of a machine can share it. A shard that changes at its "
            "address is not fetched again",
        ),
        add(
            "--shard-cache-gb",
            type=float,
            default=100.0,
            metavar="G",
            help="how large DIR may become, in 10^9 bytes: copies that are not of this run's shards make room for its "
            "own; what does not fit is read where it is",
        ),
        add(
            "--no-fast-resize",
            action="store_true",
            default=False,
            help="where Pillow decodes training pictures, have it resize them too, to OpenCLIP's very bits; without "
            "this torch does, in a quarter of the time, and one value in 200 is a level apart before colours change",
        ),
        add(
            "--no-packed-text",
            action="store_true",
            default=False,
            help="one caption a row, padded to the context length, as OpenCLIP does, and not as "
            "many as fit",
        ),
        add(
            "--no-prune-last-block",
            action="store_true",
            default=False,
            help="compute every row of each tower's last block, as OpenCLIP does, and not only the "
            "one that is read",
        ),
        add(
            "--no-fused-patch-embed",
            action="store_true",
            default=False,
            help="normalise pictures to floats before the patch embedding, as OpenCLIP does, and "
            "not inside it from their bytes",
        ),
        add(
            "--no-fused-pointwise",
            action="store_true",
            default=False,
            help="run LayerNorms, activations and residual sums on a GPU one by one, as OpenCLIP does, "
            "and not fused by torch.compile",
        ),
        add(
            "--recompute",
            choices=list(get_args(RecomputeChoice)),
            default="auto",
            help="what backward computes again to save memory: none; pointwise, which is LayerNorms, "
            "activations and casts but no matrix product; full, which is every block once more. auto is "
            "none without --grad-checkpointing; with it the first of the three that the devices' memory "
            "has room for, and full for models that are open_clip's",
        ),
        add(
            "--attention",
            choices=list(get_args(AttentionBackend)),
            default="auto",
            help="attention of both towers, a named one never replaced: sdpa is torch's, with a mask over "
            "packed captions; sdpa-fp32 the same, half precision widened, for CPUs; varlen torch's kernel for "
            "packed captions, and sdpa for the rest; auto the fastest that is here, and the log says which and why",
        ),
        add(
            "--optimizer-impl",
            choices=list(get_args(OptimizerImpl)),
            default="auto",
            help="who computes AdamW: torch, which auto is; or the FusedAdam of NVIDIA's apex, which waits for "
            "the device once a step unless --nonfinite is ignore. Checkpoints are the same",
        ),
        add(
            "--profile",
            type=int,
            default=0,
            metavar="N",
            help="profile N steps after a warm-up of 5: a trace for Chrome and a table by part, in "
            "LOGS/NAME/profile/; 0 for none",
        ),
        add(
            "--tokenizer",
            type=str,
            default=None,
            metavar="PATH",
            help="a tokenizer.json, or a folder with one, for models whose tokenizer is not the "
            "CLIP one",
        ),
        add(
            "--dry-run",
            action="store_true",
            default=False,
            help="train nothing: check the flags and the data, and print what the run would need on the cluster of "
            "--nodes, --gpus-per-node and --gpu: memory, communication, time and GPU-hours. Needs no GPU and "
            "writes nothing",
        ),
        add(
            "--nodes",
            type=int,
            default=None,
            metavar="N",
            help="with --dry-run: machines, 1 if left out",
        ),
        add(
            "--gpus-per-node",
            type=int,
            default=None,
            metavar="N",
            help="with --dry-run: processes on each machine, 1 if left out",
        ),
        add(
            "--gpu",
            type=str,
            default=None,
            metavar="CHIP",
            help="with --dry-run: a100-40g, a100-80g, h100, or cpu, which is measured on the spot; a JSON file of "
            "measured rates may follow a comma, as in a100-40g,step_on_device.json",
        ),
    ]
