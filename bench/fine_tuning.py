"""Does fine-tuning on labelled pictures help? Held-out zero-shot accuracy on ten classes of stamps, before and after.

    python -m bench.fine_tuning --stamps SHARDS --checkpoint quickstart/model [--seeds 3] [--epochs 30] [--lr 5e-4]

SHARDS hold Tux Paint's stamps (Debian's tuxpaint-stamps-default) with captions such as "A pineapple."; a table of words
makes classes of them. Every third picture of a class is held out, the same ones for every seed. Everything is done by
the commands of docs/getting-started.md: `fastclip data csv`, `train --pretrained`, `export` and `eval`. Exit status 1
if one of the seeds does not gain.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.shard_pairs import pairs

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 3  # one picture of so many
TEMPLATE = "a photo of a {}."  # that of `fastclip eval` on folders of classes

# A caption belongs to the first class of which it has a word, or words in that order; capitals, digits and signs do not
# count. Of a class with more than MOST pictures the first ones are taken.
CLASSES: Mapping[str, str] = {
    "hand sign": "american sign language",
    "letter": "the letter",
    "coin": "coin, cent piece, japanese yen",
    "musical instrument": "guitar, cymbal, drum, trumpet",
    "vehicle": "tugboat, car, truck, locomotive, mixer, dumper, airplane, ship, raptor, caboose, helicopter, tractor",
    "building": "university, hall, fishery, house, cottage, igloo, tower, pyramid, stable, tavern, monastery, "
    "castle, shop, farm, warehouse",
    "fruit": "raspberry, orange, apple, peach, apricot, blueberries, strawberry, pineapple, banana, mango, lemon, "
    "grapes, pomegranate, kiwifruit, pear, avocado, prune",
    "flower": "flower, flowers, iris, rose, daffodil, anthurium",
    "bird": "owl, crane, toucan, flamingo, peahen, fowl, heron, rhea, hen, seagull, pelican, cuckoo, lark, chick, "
    "pigeon, blackbird, drake, rosella",
    "mammal": "wombat, donkey, hedgehog, rabbit, caribou, bison, sheep, bunny, mountaingoat, mouse, marmot, lion, "
    "horse, dog, gnu, elephant, otter, orca, gorilla, doe, pig, ferret, deer, kangaroo, fox, blackbuck, tiger, boars, "
    "dromedary",
}
MOST = 24


class Labelled(NamedTuple):
    label: str
    picture: bytes


class Accuracies(NamedTuple):
    """Share of the held-out pictures that are taken for what they are."""

    before: float
    after: float


def class_of(caption: str) -> str | None:
    words = f" {' '.join(re.findall('[a-z]+', caption.lower()))} "
    for label, phrases in CLASSES.items():
        if any(f" {phrase} " in words for phrase in phrases.split(", ")):
            return label
    return None


def read_stamps(spec: str) -> list[Labelled]:
    """Those with a class, in the order of the shards."""
    labelled = ((class_of(pair.caption), pair.picture) for pair in pairs(spec, "--stamps"))
    return [Labelled(label, picture) for label, picture in labelled if label is not None]


def write_folders(samples: Iterable[Labelled], root: Path, most: int = MOST) -> dict[str, int]:
    """root/{train,test}/LABEL/NUMBER.jpg; how many of each label."""
    counts: dict[str, int] = {}
    for label, picture in samples:
        number = counts.get(label, 0)
        if number < most:
            split = "test" if number % HELD_OUT == HELD_OUT - 1 else "train"
            folder = root / split / label.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}.jpg").write_bytes(picture)
            counts[label] = number + 1
    return counts


def fine_tune(
    root: Path, checkpoint: Path, work: Path, *, seed: int, epochs: int, lr: float, batch_size: int
) -> Accuracies:
    """Of the hub folder `checkpoint`, and of what `root`/train makes of it, on `root`/test."""
    before = accuracy(checkpoint, root, work / "before.json")
    table = work / "train.csv"
    fastclip("data", "csv", root / "train", "--out", table, "--template", TEMPLATE)
    fastclip(
        *("train", "--model", f"local-dir:{checkpoint}"),
        *("--pretrained", checkpoint / "open_clip_model.safetensors"),
        *("--train-data", table, "--dataset-type", "csv"),
        *("--aug-cfg", "scale=0.5,1.0", "--precision", "fp32", "--workers", 1, "--seed", seed),
        *("--epochs", epochs, "--batch-size", batch_size, "--lr", lr, "--warmup", 5),
        *("--save-frequency", 0, "--logs", work / "logs", "--name", seed),
    )
    tuned = work / f"tuned-{seed}"
    fastclip("export", "--run", work / f"logs/{seed}", "--to", "open_clip", "--out", tuned)
    return Accuracies(before, accuracy(tuned, root, work / f"after-{seed}.json"))


def accuracy(checkpoint: Path, root: Path, out: Path) -> float:
    words = ("eval", "--checkpoint", checkpoint, "--task", "zeroshot", "--data", root)
    fastclip(*words, "--out", out, "--workers", 0)
    found: float = json.loads(out.read_text())["metrics"]["acc1"]
    return found


def fastclip(*words: object) -> None:
    """Run the command; SystemExit where it fails."""
    command = [sys.executable, "-m", "fastclip", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stamps", required=True, help="shards of pictures and captions")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder in the hub layout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        counts = write_folders(read_stamps(args.stamps), work / "stamps")
        print(", ".join(f"{label}: {count}" for label, count in counts.items()))
        held_out = sum(count // HELD_OUT for count in counts.values())
        largest = max(count // HELD_OUT for count in counts.values())
        print(f"{len(counts)} classes, {sum(counts.values())} pictures, {held_out} held out")
        print(f"to guess the largest class: {largest / held_out:.1%}")
        gained = True
        for seed in range(args.seeds):
            before, after = fine_tune(
                work / "stamps",
                args.checkpoint.resolve(),
                work,
                seed=seed,
                epochs=args.epochs,
                lr=args.lr,
                batch_size=args.batch_size,
            )
            print(f"seed {seed}: {before:.1%} before, {after:.1%} after", flush=True)
            gained &= after > before
    sys.exit(not gained)


if __name__ == "__main__":
    main()
