"""`fastclip train`: train or evaluate with an OpenCLIP command line, or say what that would take."""

from __future__ import annotations

from collections.abc import Sequence

from fastclip.cli.job import Job
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve


def prepare(argv: Sequence[str]) -> Job:
    """Parse and check `argv`; nothing heavy is imported. Raises UserError; exits after `--help`."""
    config = resolve(parse_args(argv))

    # torch and all the rest load in these, after every mistake in the flags has been reported
    def train() -> None:
        from fastclip.train.run import run

        run(config)

    def plan() -> None:
        from fastclip.plan.dry_run import dry_run

        dry_run(config)

    return Job(run=plan if config.cluster.dry_run else train, debug=config.log.debug)
