"""The two trainers, each as its own command on the same shards with the same flags, in turns: seconds of a step.

    python -m bench.whole_trainer --train-data SHARDS [--rounds 3] [--steps 24] [--batch-size 32] [--out FOLDER]

SHARDS as --train-data of both takes it (default: the bundled demo shards). The flags are those of a user's training
script for ViT-B-32-256; words after `--` go to both, those of --ours to fastclip alone. Needs the reference trainer's
environment, which scripts/reference_env.sh makes. A round runs OpenCLIP, then fastclip; steps are read from their log
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
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.loss_on_device import machine, write

ROOT = Path(__file__).resolve().parents[1]
REFERENCE_PYTHON = ROOT / ".venv-reference" / "bin" / "python"
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
    reference = [str(REFERENCE_PYTHON), "-m", "open_clip_train.main"]
    ours = [sys.executable, "-m", "fastclip", "train"]
    return {
        "open_clip": [*reference, *flags, "--name", f"open_clip-{turn}"],
        "fastclip": [*ours, *flags, *shlex.split(options.ours), "--name", f"fastclip-{turn}"],
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; prints one line each."""
    rounds: list[dict[str, Any]] = []
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="whole-trainer-") as name:
        folder = Path(name)
        for turn in range(options.rounds):
            shown = {
                who: shlex.join(words) for who, words in commands(options, folder, turn).items()
            }
            measured = {
                who: run_once(command, folder / f"{who}-{turn}" / "out.log", options.warm_up)
                for who, command in commands(options, folder, turn).items()
            }
            means = {who: statistics.mean(each.seconds) for who, each in measured.items()}
            ratio = means["open_clip"] / means["fastclip"]
            peak = {who: each.peak_bytes / 1e9 for who, each in measured.items()}
            print(
                f"round {turn + 1}: open_clip {means['open_clip']:.2f} s a step, fastclip {means['fastclip']:.2f} s, "
                f"ratio {ratio:.2f}; peak {peak['open_clip']:.2f} and {peak['fastclip']:.2f} GB",
                flush=True,
            )
            rounds.append({"ratio": ratio, **{who: m._asdict() for who, m in measured.items()}})
    return {"commands": shown, "warm_up": options.warm_up, "rounds": rounds}


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
    if not REFERENCE_PYTHON.exists():
        print("no .venv-reference here: run scripts/reference_env.sh first", file=sys.stderr)
        return 69
    result = compare(options)
    ratios = sorted(each["ratio"] for each in result["rounds"])
    low = statistics.quantiles(ratios, n=4, method="inclusive")[0] if len(ratios) > 1 else ratios[0]
    print(
        f"ratio: median {statistics.median(ratios):.2f}, lower quartile {low:.2f} of {len(ratios)} rounds"
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
