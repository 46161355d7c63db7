#!/usr/bin/env python
"""Make fastclip/data/assets/clip_bpe_merges.txt.gz from the vocabulary file of the installed
open_clip.

open_clip publishes OpenAI's `bpe_simple_vocab_16e6.txt.gz` (MIT): a version line and 262,144
merges, of which CLIP uses the first 48,894. The asset holds those alone, one `left right` a line,
with no time stamp inside, so that the same input always makes the same bytes. Usage: python
scripts/build_vocab.py [--check]
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import sys
from pathlib import Path

ASSET = Path(__file__).resolve().parents[1] / "fastclip/data/assets/clip_bpe_merges.txt.gz"
# 49,152 words was the size trained for; 256 bytes, their 256 word-final forms and 2 marks are not
# merges.
MERGES = 49_152 - 256 - 2


def merges_of_open_clip() -> str:
    """The merges CLIP uses, one a line, from the installed open_clip (not imported)."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        sys.exit("open_clip is not installed: pip install open_clip_torch==3.3.0")
    source = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    return "".join(f"{line}\n" for line in lines[1 : MERGES + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the asset, write nothing"
    )
    check = parser.parse_args().check
    merges = merges_of_open_clip()
    if check:
        same = gzip.decompress(ASSET.read_bytes()).decode("utf-8") == merges
        print(f"{ASSET}: {'as published' if same else 'differs from open_clip'}")
        sys.exit(0 if same else 1)
    ASSET.parent.mkdir(parents=True, exist_ok=True)
    ASSET.write_bytes(gzip.compress(merges.encode("utf-8"), compresslevel=9, mtime=0))
    print(f"{ASSET}: {len(merges.splitlines())} merges, {ASSET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
