"""Our flags with their defaults, and a parser's flags by name; used by several tests."""

from __future__ import annotations

import argparse

OWN = {
    "--loss-backend": "auto",
    "--decoder": "auto",
    "--allreduce-dtype": "fp32",
    "--deterministic": False,
    "--nonfinite": "skip",
    "--unsafe-load": False,
    "--allow-pipe-from-files": False,
    "--max-bad-fraction": 1.0,
    "--shard-cache": None,
    "--shard-cache-gb": 100.0,
    "--no-fast-resize": False,
    "--no-packed-text": False,
    "--no-prune-last-block": False,
    "--no-fused-patch-embed": False,
    "--no-fused-pointwise": False,
    "--recompute": "auto",
    "--attention": "auto",
    "--optimizer-impl": "auto",
    "--profile": 0,
    "--tokenizer": None,
    "--save-every-n-steps": 0,
    "--save-every-minutes": 15.0,
    "--keep-last": 0,
    "--dry-run": False,
    "--nodes": None,
    "--gpus-per-node": None,
    "--gpu": None,
}


OWN_DESTS = {flag[2:].replace("-", "_") for flag in OWN}


def by_name(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {s: action for action in parser._actions for s in action.option_strings}
