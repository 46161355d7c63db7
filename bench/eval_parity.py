"""Every figure of `fastclip eval` beside CLIP_benchmark 1.6.2's, from real pictures and a trained checkpoint.

    python -m bench.eval_parity --stamps SHARDS --clipart SHARDS --checkpoint quickstart/model

Retrieval on the stamps (one caption each), zero-shot classification and a linear probe on clip art by its top category,
the last of the words of its caption, and on scikit-learn's digits. Every third picture is for testing. Each tool is run
as its own command; exit status 1 where figures differ by more than 1e-4, of a linear probe by half a point. Needs the
environment that scripts/clip_benchmark_env.sh makes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bench import clip_benchmark_command
from bench.benchmark_layout import write_classes, write_digits, write_shards
from bench.clip_benchmark_command import PYTHON, TOLERANCE
from bench.eval_command import timed
from bench.shard_pairs import pairs

FEWEST = 25  # pictures that make a category a class
MOST = 100  # pictures of a class
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Compared(NamedTuple):
    metric: str
    ours: float
    theirs: float
    agree: bool


def write_stamps(spec: str, folder: Path) -> int:
    samples = [{"jpg": p.picture, "txt": p.caption.encode()} for p in pairs(spec, "--stamps")]
    write_shards(folder, "test", samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return len(samples)


def write_clipart(spec: str, folder: Path) -> int:
    found = list(pairs(spec, "--clipart"))
    categories = [pair.caption.split(",")[-1].strip() for pair in found]
    names = sorted(name for name, count in Counter(categories).items() if count >= FEWEST)
    taken: Counter[str] = Counter()
    samples = []
    for pair, category in zip(found, categories, strict=True):
        if category in names and taken[category] < MOST:
            taken[category] += 1
            samples.append({"jpg": pair.picture, "cls": str(names.index(category)).encode()})
    write_classes(folder, samples, names)
    return len(samples)


def compare(hub: Path, data: Path, task: str, work: Path) -> list[Compared]:
    out = work / f"{data.name}-{task}"
    theirs, ours = out.with_suffix(".theirs.json"), out.with_suffix(".json")
    _, expected = timed(clip_benchmark_command.command(hub, data, task, theirs), theirs)
    words = ["eval", "--checkpoint", str(hub), "--data", str(data), "--task", task]
    words += ["--precision", "fp32", "--device", "cpu", "--workers", "1", "--out", str(ours)]
    _, got = timed([sys.executable, "-m", "fastclip", *words], ours)
    compared = []
    for metric in sorted(got.keys() | expected.keys()):
        mine, other = got.get(metric), expected.get(metric)
        if mine is None or other is None:  # a figure that only one of them has
            compared.append(Compared(metric, float("nan"), float("nan"), mine == other))
        else:
            compared.append(Compared(metric, mine, other, abs(mine - other) <= TOLERANCE[task]))
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stamps", required=True, help="shards of pictures and captions")
    parser.add_argument("--clipart", required=True, help="shards whose captions end in a category")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder in the hub layout")
    args = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON} is missing: run scripts/clip_benchmark_env.sh")
    hub = args.checkpoint.resolve()
    agree = True
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        print(f"stamps: {write_stamps(args.stamps, work / 'stamps')} pictures with a caption")
        print(f"clipart: {write_clipart(args.clipart, work / 'clipart')} pictures of a category")
        write_digits(work / "digits", DIGITS)
        print("\n| data | task | metric | fastclip | CLIP_benchmark | difference | |")
        print("|---|---|---|---|---|---|---|")
        for name, task in (
            ("stamps", "retrieval"),
            ("clipart", "zeroshot"),
            ("clipart", "linear-probe"),
            ("digits", "zeroshot"),
            ("digits", "linear-probe"),
        ):
            for row in compare(hub, work / name, task, work):
                print(
                    f"| {name} | {task} | {row.metric} | {row.ours:.6g} | {row.theirs:.6g} "
                    f"| {abs(row.ours - row.theirs):.1e} | {'' if row.agree else 'DIFFERS'} |",
                    flush=True,
                )
                agree &= row.agree
    sys.exit(not agree)


if __name__ == "__main__":
    main()
