"""`fastclip data check`, `pack` and `csv`: what is trained on, before it is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fastclip.cli.job import Job
from fastclip.cli.one_line_parser import OneLineParser
from fastclip.cli.stdout import say

_SHARDS = "shards as --train-data takes them: a folder, braces, a list, addresses"


def prepare(argv: Sequence[str]) -> Job:
    """Parse `argv`; nothing heavy is imported. Raises UserError; exits after `--help`."""
    words = _parser().parse_args(argv)
    return {"check": _check, "pack": _pack, "csv": _csv}[words.task](words)


def _check(words: argparse.Namespace) -> Job:
    def run() -> None:
        from fastclip.curate.check import CheckConfig, check
        from fastclip.curate.findings import RunShape

        config = CheckConfig(
            shards=words.shards,
            out=words.out,
            decode=words.decode,
            processes=words.processes,
            max_bad_fraction=words.max_bad_fraction,
            allow_pipe_from_files=words.allow_pipe_from_files,
            run=RunShape(words.batch_size, words.world_size, words.workers),
        )
        say("\n".join(check(config)))

    return Job(run=run, debug=False)


def _pack(words: argparse.Namespace) -> Job:
    def run() -> None:
        from fastclip.curate.pack import PackConfig, pack

        config = PackConfig(
            shards=words.shards,
            out=words.out,
            resize=words.resize,
            quality=words.quality,
            samples_per_shard=words.samples_per_shard,
            processes=words.processes,
            allow_pipe_from_files=words.allow_pipe_from_files,
        )
        say("\n".join(pack(config)))

    return Job(run=run, debug=False)


def _csv(words: argparse.Namespace) -> Job:
    def run() -> None:
        from fastclip.data.labelled_folder import write_csv

        counts = write_csv(words.folder, words.out, words.template)
        say(f"{words.out}: {sum(counts.values()):,} pictures of {len(counts):,} labels")

    return Job(run=run, debug=False)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="fastclip data", description="What is trained on, before it is.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{check,pack,csv}")
    check = tasks.add_parser(
        "check",
        help="read shards as training does, and say what it will make of them",
        description="Reads shards as training does. Writes sizes.json, a report (data_check.json and .md) and every "
        "bad member (data_check.bad.jsonl). Exit status 65 where nothing is usable or too much is bad.",
    )
    _add_common(check)
    add = check.add_argument
    add("--out", type=Path, metavar="DIR", help="where to write; default: the folder of the shards")
    add("--decode", action="store_true", help="decode every picture, and not only its header")
    add(
        "--batch-size",
        type=_whole(1),
        default=256,
        metavar="N",
        help="per process, of the run to count steps for",
    )
    add("--world-size", type=_whole(1), default=1, metavar="N", help="processes of that run")
    add("--workers", type=_whole(0), default=4, metavar="N", help="loaders per process of that run")
    add(
        "--max-bad-fraction",
        type=_fraction,
        default=1.0,
        metavar="F",
        help="exit status 65 where a larger part of the samples is bad",
    )
    pack = tasks.add_parser(
        "pack",
        help="write new shards: resized, of one size, without what is bad",
        description="Writes new shards with the pictures and captions that decode, in their order, sizes.json and "
        "manifest.json. A run that was cut short goes on when the same command is given again.",
    )
    _add_common(pack)
    add = pack.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where to write; new, or begun by the same command",
    )
    add(
        "--resize",
        type=_whole(1),
        metavar="N",
        help="shrink pictures whose shorter edge is longer than N pixels to it",
    )
    add(
        "--quality",
        type=_whole(1, 100),
        default=95,
        metavar="Q",
        help="of the JPEGs that shrunk pictures become",
    )
    add(
        "--samples-per-shard",
        type=_whole(1),
        default=10_000,
        metavar="N",
        help="the last shard may have fewer",
    )
    labelled = tasks.add_parser(
        "csv",
        help="write the captions of a folder of labelled pictures",
        description="Writes the captions of FOLDER/LABEL/PICTURE.jpg as a file for `fastclip train --dataset-type csv "
        "--train-data FILE`.",
    )
    add = labelled.add_argument
    add("folder", type=Path)
    add("--out", required=True, type=Path, metavar="FILE")
    add("--template", default="a photo of a {}.", help="caption of a label [%(default)s]")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help=_SHARDS)
    parser.add_argument(
        "--processes",
        type=_whole(1),
        default=min(16, os.cpu_count() or 1),
        metavar="N",
        help="that do the work; default: one per CPU, at most 16",
    )
    parser.add_argument(
        "--allow-pipe-from-files", action="store_true", help="as fastclip train has it"
    )


class _whole:
    """A whole number within bounds, for argparse."""

    def __init__(self, least: int, most: int | None = None) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        value = int(text) if text.lstrip("-").isdecimal() else self._least - 1
        if value < self._least or (self._most is not None and value > self._most):
            most = "" if self._most is None else f", at most {self._most}"
            raise argparse.ArgumentTypeError(
                f"{text!r}: a whole number, at least {self._least}{most}"
            )
        return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number between 0 and 1")
    return value
