"""The two trainers, each as its own command on the same shards with the same flags, in turns: seconds of a step.

    python -m bench.whole_trainer --train-data SHARDS [--rounds 3] [--steps 24] [--batch-size 32] [--out FOLDER]

SHARDS as --train-data of both takes it (default: the bundled demo shards). The flags are those of a user's training
script for ViT-B-32-256; words after `--` go to both, those of --ours to fastclip alone. Needs the reference trainer's
environment, which scripts/reference_env.sh makes. A round runs OpenCLIP, then fastclip, the next one the other way
round; steps are read from their log
lines, the first ones left out; of each round the ratio of mean step times is taken. Ratios on a busy machine mean
little: run nothing beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import reference_environment
from bench.machine import machine, write
from bench.paired import in_turn, with_spread
from bench.reference_environment import ROOT

DEMO = str(ROOT / "fastclip" / "demo" / "train-{0000..0003}.tar")

USER_FLAGS = shlex.split("""
--aug-cfg scale=(0.4,1.0) color_jitter=(0.32,0.32,0.32,0.08) color_jitter_prob=0.8 gray_scale_prob=0.2 use_timm=True
--dataset-type webdataset --workers 1 --model ViT-B-32-256 --seed 0 --warmup 2000 --epochs 1
--ddp-static-graph --local-loss --gather-with-grad --lr 0.001 --log-every-n-steps 1 --save-frequency 0
--grad-checkpointing --precision amp_bfloat16 --beta1 0.9 --beta2 0.95 --wd 0.2
""")

_STEP = re.compile(r"Train Epoch: .*Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+),")


class Measured(NamedTuple):
    seconds: list[float]  # of each step, the first ones left out
    waiting: float  # share of them spent waiting for data
    peak_bytes: int  # of the largest process: the training one, unless a loader was larger


def run_once(command: list[str], log: Path, warm_up: int) -> Measured:
    """One whole training run. Raises SystemExit with the end of its output where it fails."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{output.read()[-2000:]}")
    found = [tuple(map(float, each)) for each in _STEP.findall(log.read_text())][warm_up:]
    waits, steps = zip(*found, strict=True)
    return Measured(list(steps), sum(waits) / sum(steps), usage.ru_maxrss * 1024)


def commands(options: argparse.Namespace, folder: Path, turn: int) -> dict[str, list[str]]:
    """What to run, by whose trainer it is."""
    samples = options.batch_size * options.steps
    flags = [
        *USER_FLAGS,
        *("--train-data", options.train_data, "--train-num-samples", str(samples)),
        *("--batch-size", str(options.batch_size), "--logs", str(folder)),
        *options.both,
    ]
    reference = [str(reference_environment.PYTHON), "-m", "open_clip_train.main"]
    ours = [sys.executable, "-m", "fastclip", "train"]
    return {
        "open_clip": [*reference, *flags, "--name", f"open_clip-{turn}"],
        "fastclip": [*ours, *flags, *shlex.split(options.ours), "--name", f"fastclip-{turn}"],
    }


def compare(options: argparse.Namespace, without: Collection[str] = ()) -> dict[str, Any]:
    """All rounds, of both trainers but those left out; prints one line each."""
    rounds: list[dict[str, Any]] = []
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="whole-trainer-") as name:
        folder = Path(name)
        for turn in range(options.rounds):
            to_run = commands(options, folder, turn)
            shown = {who: shlex.join(words) for who, words in to_run.items()}
            measured = {
                who: run_once(to_run[who], folder / f"{who}-{turn}" / "out.log", options.warm_up)
                for who in in_turn(list(to_run), turn)
                if who not in without
            }
            print(f"round {turn + 1}: {_line(measured)}", flush=True)
            rounds.append({who: each._asdict() for who, each in measured.items()})
    return {"commands": shown, "warm_up": options.warm_up, "rounds": rounds}


def step_seconds(measured: dict[str, Any]) -> float:
    """The mean step of one run of `compare`'s rounds."""
    return statistics.mean(measured["seconds"])


def _line(measured: dict[str, Measured]) -> str:
    return "; ".join(
        f"{who} {statistics.mean(each.seconds):.2f} s a step, peak {each.peak_bytes / 1e9:.2f} GB"
        for who, each in measured.items()
    )


def main(arguments: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train-data", default=DEMO)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="of each run, --warm-up included")
    parser.add_argument("--warm-up", type=int, default=4, help="first steps that are not counted")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ours", default="", help="flags for fastclip alone, in one word")
    parser.add_argument("--out", type=Path, help="folder for whole_trainer.json")
    options = parser.parse_args(words[:cut])
    options.both = words[cut + 1 :]
    if options.warm_up >= options.steps:
        print(
            f"--warm-up {options.warm_up}: must be less than --steps {options.steps}",
            file=sys.stderr,
        )
        return 2
    if not reference_environment.is_there():
        print(reference_environment.MISSING, file=sys.stderr)
        return 69
    result = compare(options)
    for each in result["rounds"]:
        each["ratio"] = step_seconds(each["open_clip"]) / step_seconds(each["fastclip"])
    found = with_spread([each["ratio"] for each in result["rounds"]])
    print(
        f"ratio: median {found.median:.2f}, {found.low:.2f} to {found.high:.2f} in {options.rounds} rounds"
    )
    if options.out is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        write(
            options.out / "whole_trainer.json",
            {
                "machine": machine(device),
                **result,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
