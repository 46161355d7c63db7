"""Peak memory of one training step on a CPU, ours beside the reference's with its --grad-checkpointing.

    python -m bench.memory_of_step [--model ViT-B-32-256] [--batch-size 32] [--precision amp_bfloat16]

Each way takes two steps in a process of its own (the second has the optimiser's state), with one thread, on random
pictures and the captions of the bundled shards; its peak is the system's (VmHWM) less what importing everything took.
The reference is open_clip's model and loss and torch's AdamW, joined as its trainer joins them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bench.captions import DEMO, captions_of, repeated
from bench.resident_step import our_step, reference_step

ROOT = Path(__file__).resolve().parents[1]
STEPS = 2
# our flags beside --grad-checkpointing, by the name of the way
OURS = {
    "auto": [],
    "none": ["--recompute", "none"],
    "pointwise": ["--recompute", "pointwise"],
    "full": ["--recompute", "full"],
}


def of_this_process(what: str) -> int:
    """VmHWM or VmRSS in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) * 1024


def measure(way: str, model: str, batch_size: int, precision: str) -> int:
    """Bytes at the peak of the steps above what importing took; in this process."""
    import open_clip  # noqa: F401 (both sides begin with all that either imports)
    import open_clip_train.params  # noqa: F401

    import fastclip.train.setup  # noqa: F401
    from fastclip.data.tokenizer import build_tokenizer
    from fastclip.model.model_config import load_config, tokenizer_spec

    torch.set_num_threads(1)
    torch.manual_seed(0)
    height, width = load_config(model).vision_cfg.image_size_pair
    tokenize = build_tokenizer(
        tokenizer_spec(model, context_length=None, tokenizer_file=None, cache_dir=None)
    )
    texts = tokenize(repeated(captions_of(DEMO), batch_size))
    images = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8)
    before = of_this_process("VmRSS")
    flags = ["--train-data", "unused", "--model", model, "--precision", precision]
    flags += ["--batch-size", str(batch_size), "--local-loss", "--gather-with-grad"]
    if way == "reference":
        step = reference_step([*flags, "--grad-checkpointing"], images, texts)
    else:
        ours = ["--logs", "none", "--device", "cpu", "--grad-checkpointing", *OURS[way]]
        step = our_step([*flags, *ours], images, texts)
    for _ in range(STEPS):
        step()
    return of_this_process("VmHWM") - before


def measure_each(ways: list[str], model: str, batch_size: int, precision: str) -> dict[str, int]:
    """The same for each way, in a fresh process."""
    peaks = {}
    for way in ways:
        words = [sys.executable, "-m", "bench.memory_of_step", "--model", model, "--one", way]
        words += ["--batch-size", str(batch_size), "--precision", precision]
        run = subprocess.run(
            words,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks[way] = int(run.stdout.split()[-1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32-256")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="amp_bfloat16")
    parser.add_argument("--one", choices=["reference", *OURS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    where = (args.model, args.batch_size, args.precision)
    if args.one:
        print(measure(args.one, *where))
        return
    peaks = measure_each(["reference", *OURS], *where)
    for way, peak in peaks.items():
        ratio = peak / peaks["reference"]
        print(f"{way:>10}  {peak / 1e6:8.0f} MB  {ratio:.3f} of the reference's", file=sys.stderr)
    print(json.dumps({"model": args.model, "batch_size": args.batch_size, "peak_bytes": peaks}))


if __name__ == "__main__":
    main()
