"""`fastclip eval` and CLIP_benchmark 1.6.2, each as its own command on the same checkpoint and data, in turns.

    python -m bench.eval_command --data FOLDER [--task retrieval|zeroshot|linear-probe] [--model NAME] [--hub FOLDER]

FOLDER is in CLIP_benchmark's webdataset layout; --hub is a checkpoint in the hub layout (default: ViT-B-32 with random
weights, which take the same time). Both run in fp32 with the same batch size and number of loader processes, and their
figures are compared first. Needs the environment that scripts/clip_benchmark_env.sh makes. Time is that of the whole
command, start to finish; of each round the ratio is taken. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

import fastclip
from bench import clip_benchmark_command
from bench.clip_benchmark_command import TASKS, TOLERANCE
from fastclip.model.model_config import load_config

ROOT = Path(__file__).resolve().parents[1]


def random_hub(model: str, folder: Path) -> Path:
    folder.mkdir()
    config = json.dumps({"model_cfg": asdict(load_config(model)), "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(config)
    state = fastclip.create_model(model).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def timed(command: list[str], out: Path) -> tuple[float, dict[str, float | None]]:
    """Seconds, and the metrics written to `out`. Raises SystemExit where the command fails."""
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")
    metrics: dict[str, float | None] = json.loads(out.read_text())["metrics"]
    return seconds, metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", choices=tuple(TASKS), default="retrieval")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--hub")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    data = str(Path(args.data).resolve())
    with tempfile.TemporaryDirectory() as folder:
        hub = (
            str(Path(args.hub).resolve())
            if args.hub
            else str(random_hub(args.model, Path(folder, "hub")))
        )
        ratios = []
        for number in range(1, args.rounds + 1):
            out = Path(folder, f"round-{number}", "out.json")  # nothing of another round is there
            out.parent.mkdir()
            theirs = clip_benchmark_command.command(
                Path(hub),
                Path(data),
                args.task,
                out,
                batch_size=args.batch_size,
                workers=args.workers,
            )
            ours = [
                *(sys.executable, "-m", "fastclip", "eval", "--checkpoint", hub, "--data", data),
                *("--task", args.task, "--precision", "fp32", "--batch-size", str(args.batch_size)),
                *("--workers", str(args.workers), "--out", str(out)),
            ]
            reference, expected = timed(theirs, out)
            seconds, got = timed(ours, out)
            for name, value in got.items():
                if value is not None and abs(value - (expected[name] or 0)) > TOLERANCE[args.task]:
                    raise SystemExit(f"{name}: {value}, CLIP_benchmark has {expected[name]}")
            ratios.append(reference / seconds)
            print(
                f"round {number}: CLIP_benchmark {reference:.1f} s, fastclip {seconds:.1f} s, "
                f"{ratios[-1]:.2f} times as fast"
            )
    print(f"median of {args.rounds} rounds: {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
