"""`fastclip data`: training data from what one has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastclip.cli.job import Job
from fastclip.cli.one_line_parser import OneLineParser
from fastclip.cli.stdout import say


def prepare(argv: Sequence[str]) -> Job:
    """Parse `argv`; raises UserError, and exits after `--help`."""
    parser = OneLineParser(
        "fastclip data",
        "csv: write the captions of a folder of labelled pictures, FOLDER/LABEL/PICTURE.jpg, as a "
        "file for `fastclip train --dataset-type csv --train-data FILE`.",
    )
    parser.add_argument("what", choices=["csv"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--template", default="a photo of a {}.", help="caption of a label [%(default)s]"
    )
    own = parser.parse_args(argv)

    def run() -> None:
        from fastclip.data.labelled_folder import write_csv

        counts = write_csv(own.folder, own.out, own.template)
        say(f"{own.out}: {sum(counts.values()):,} pictures of {len(counts):,} labels")

    return Job(run=run, debug=False)
