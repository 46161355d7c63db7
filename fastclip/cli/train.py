"""`fastclip train`: train or evaluate with an OpenCLIP command line."""

from __future__ import annotations

from collections.abc import Sequence

from fastclip.cli.job import Job
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve


def prepare(argv: Sequence[str]) -> Job:
    """Parse and check `argv`; nothing heavy is imported. Raises UserError; exits after `--help`."""
    config = resolve(parse_args(argv))

    def run() -> None:
        # torch and all the rest load here, after every mistake in the flags has been reported
        from fastclip.train.run import run as train

        train(config)

    return Job(run=run, debug=config.log.debug)
