"""`fastclip doctor`: looks at this machine for the run that an OpenCLIP command line describes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastclip.cli.job import Job
from fastclip.cli.one_line_parser import OneLineParser
from fastclip.cli.stdout import say
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.errors import ExitCode

_USAGE = """usage: fastclip doctor [--json] [any flags of fastclip train]

Looks at this machine: GPUs, driver, links, torch, packages, memory, CPUs, variables, folders and data, and at what each
part of the trainer will use and why. One line a finding: ok, slower, missing or broken, with what to do.
Give the flags of a run to have it judged for that run; without data among them an example is looked at.

options:
  --json  the same as JSON; docs/doctor.md says what is in it

exit status: 0; or that with which `fastclip train` would end with these flags, 69 where something is missing here.
"""
# What is looked at where the flags name no data: they win over these.
_EXAMPLE = ["--model", "ViT-B-32", "--precision", "amp_bf16"]
_EXAMPLE_DATA = ["--dataset-type", "synthetic", "--train-num-samples", "1000000"]


def prepare(argv: Sequence[str]) -> Job:
    """Parse `argv`: raises UserError as `fastclip train` would for its flags; exits after `--help`."""
    parser = OneLineParser(add_help=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    own, words = parser.parse_known_args(argv)
    if own.help:
        print(_USAGE, end="")
        raise SystemExit(0)
    given = parse_args(words)
    has_data = given.dataset_type == "synthetic" or any(
        (given.train_data, given.val_data, given.imagenet_val, given.imagenet_v2)
    )
    config = resolve(given if has_data else parse_args([*_EXAMPLE, *_EXAMPLE_DATA, *words]))

    def run() -> ExitCode:
        from fastclip.doctor.collect import collect
        from fastclip.doctor.examine import examine

        report = examine(collect(), config)
        say(json.dumps(report.as_json(), indent=2) if own.json else report.text())
        return report.status

    return Job(run=run, debug=config.log.debug)
