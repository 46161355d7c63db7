"""Cut the bundled demo set from a folder of webdataset shards of public-domain clip art.

    python scripts/make_demo_set.py SOURCE [--out fastclip/demo] [--max-bytes 6000000]

SOURCE holds tar shards of `jpg` + `txt` pairs whose captions end in category words
("usb mount, device, flat theme, icons, computer"). The result is `train-0000.tar` ..
`train-0003.tar`, `val-0000.tar` (held out) and `sizes.json`; the same source and the same Pillow
give the same bytes.

What is chosen, and why:
- no caption and no picture occurs twice in the whole set, so a held-out caption has one right
  answer and nothing held out was trained on;
- categories are capped, so that retrieval is not decided among two hundred icons of one theme,
  and small ones left out, so that a few minutes of training can tell them apart;
- held-out pictures come from the same categories, as evenly as they go.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from PIL import Image

SHORTER_EDGE = 72  # pixels: the demo model looks at 64
LONGEST_EDGE = 160
JPEG_QUALITY = 80
MOST_JPEG_BYTES = 3072  # photographs and dense patterns cost what three icons cost
TRAIN_SHARDS = 4
HELD_OUT = 240
LEAST_PER_CATEGORY = 14  # after removing what is double, thin or heavy
TRAIN_PER_CATEGORY = 60
NO_CATEGORY = ("", "unsorted")
TAR_BLOCK = 512


class Sample(NamedTuple):
    key: str
    caption: str
    category: str
    jpg: bytes
    size: tuple[int, int]  # width, height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with the source shards (*.tar)")
    parser.add_argument("--out", type=Path, default=Path("fastclip/demo"))
    parser.add_argument("--max-bytes", type=int, default=6_000_000, help="of all shards together")
    args = parser.parse_args()

    samples = unique(shrink(key, caption, jpg) for key, caption, jpg in read_shards(args.source))
    held_out, train = split(samples)
    train = within_budget(train, args.max_bytes - sum(tar_bytes(s) for s in held_out) - 64 * 1024)
    args.out.mkdir(parents=True, exist_ok=True)
    shards = {f"train-{i:04d}.tar": train[i::TRAIN_SHARDS] for i in range(TRAIN_SHARDS)} | {
        "val-0000.tar": held_out
    }
    for name, members in shards.items():
        write_shard(args.out / name, members)
    sizes = {name: len(members) for name, members in shards.items()}
    (args.out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    total = sum((args.out / name).stat().st_size for name in shards)
    print(
        f"{len(train)} pictures to train on, {len(held_out)} held out, {total} bytes in {args.out}"
    )


def read_shards(source: Path) -> Iterator[tuple[str, str, bytes]]:
    paths = sorted(source.glob("*.tar"))
    if not paths:
        raise SystemExit(f"{source}: no *.tar there")
    for path in paths:
        members: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                if file is not None:
                    members[key][extension] = file.read()
        for key, parts in members.items():
            if "jpg" in parts and "txt" in parts:
                yield key, parts["txt"].decode(), parts["jpg"]


def shrink(key: str, caption: str, jpg: bytes) -> Sample:
    picture = Image.open(io.BytesIO(jpg)).convert("RGB")
    scale = min(1.0, SHORTER_EDGE / min(picture.size), LONGEST_EDGE / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(edge * scale)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    category = caption.partition(", ")[2]
    return Sample(key, caption, category, out.getvalue(), picture.size)


def unique(samples: Iterator[Sample]) -> list[Sample]:
    """In an order set by the keys alone; the first of equal captions or equal pictures stays."""
    captions, pictures, kept = set(), set(), []
    for sample in sorted(samples, key=lambda s: hashlib.sha1(s.key.encode()).digest()):
        digest = hashlib.sha1(sample.jpg).digest()
        thin = max(sample.size) > 3 * min(sample.size)  # a random crop of those shows nothing
        if thin or sample.category in NO_CATEGORY or len(sample.jpg) > MOST_JPEG_BYTES:
            continue
        if sample.caption in captions or digest in pictures:
            continue
        captions.add(sample.caption)
        pictures.add(digest)
        kept.append(sample)
    return kept


def split(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Held-out part, and candidates for training dealt round robin over the categories."""
    categories: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        categories[sample.category].append(sample)
    big_enough = [members for members in categories.values() if len(members) >= LEAST_PER_CATEGORY]
    # One picture of every category, then a second one of every category, ...
    rounds = [s for row in zip_longest(*big_enough) for s in row if s is not None]
    held_out = rounds[:HELD_OUT]
    per_category = Counter(sample.category for sample in held_out)
    train = []
    for sample in rounds[HELD_OUT:]:
        per_category[sample.category] += 1
        if per_category[sample.category] <= TRAIN_PER_CATEGORY:
            train.append(sample)
    return held_out, train


def within_budget(samples: list[Sample], max_bytes: int) -> list[Sample]:
    kept, used = [], 0
    for sample in samples:
        used += tar_bytes(sample)
        if used > max_bytes:
            break
        kept.append(sample)
    # Round robin order would put whole categories into one shard; the key's hash mixes them.
    return sorted(kept, key=lambda s: hashlib.sha1(s.key.encode()).digest())


def members_of(sample: Sample) -> dict[str, bytes]:
    return {"jpg": sample.jpg, "txt": sample.caption.encode()}


def tar_bytes(sample: Sample) -> int:
    """One header block per member, and each member's bytes rounded up to whole blocks."""
    return sum(TAR_BLOCK * (1 + -(-len(data) // TAR_BLOCK)) for data in members_of(sample).values())


def write_shard(path: Path, samples: list[Sample]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for extension, data in members_of(sample).items():
                member = tarfile.TarInfo(f"{sample.key}.{extension}")  # time, owner and mode: zero
                member.size = len(data)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
