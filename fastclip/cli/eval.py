"""`fastclip eval`: zero-shot classification, retrieval, linear probe, and DataComp's suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from fastclip.cli.job import Job
from fastclip.cli.one_line_parser import OneLineParser
from fastclip.cli.stdout import say
from fastclip.config.eval_options import EvalOptions


def prepare(argv: Sequence[str]) -> Job:
    """Parse and check `argv`; nothing heavy is imported. Raises UserError; exits after `--help`."""
    given = vars(_parser().parse_args(argv))
    options = EvalOptions(**{field.name: given[field.name] for field in fields(EvalOptions)})

    def run() -> None:
        if options.suite is not None:
            from fastclip.benchmark.suite import evaluate_suite

            evaluate_suite(options, say)
        else:
            from fastclip.benchmark.command import evaluate

            evaluate(options, say)

    return Job(run=run, debug=False)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="fastclip eval",
        description="Evaluates a checkpoint with the definitions of CLIP_benchmark and DataComp. Start it again with "
        "the same flags and it goes on where it was stopped.",
        hint="; `fastclip eval --help` lists the flags",
    )
    add = parser.add_argument_group("what is evaluated").add_argument
    add("--model", help="a model's name, local-dir:PATH or hf-hub:ORG/REPO")
    add(
        "--checkpoint",
        help="a weight file (ours, OpenCLIP's, safetensors), a tag of OpenCLIP, or a folder in its hub layout",
    )
    add("--force-quick-gelu", action="store_true", help="as in training: for weights of OpenAI's")
    add("--unsafe-load", action="store_true", help="also read weight files that may run code")
    add = parser.add_argument_group("on one data set").add_argument
    add("--task", help="zeroshot, retrieval or linear-probe")
    add(
        "--data",
        help="a folder in CLIP_benchmark's webdataset layout, a folder of class folders, a csv file; for --task "
        "retrieval also shards as --val-data names them, or (with --annotations) a folder of pictures",
    )
    add("--split", default="test", help="which part of the data (default: %(default)s)")
    add("--train-data", help="what a linear probe is trained on, if not another part of --data")
    add("--train-split", default="train", help="which part of that (default: %(default)s)")
    add("--classnames", help="a text file, one class name a line, instead of the data's own")
    add("--templates", help="a text file, one sentence a line with {c} for the class name")
    add("--annotations", help="captions as COCO or Karpathy publish them, for --task retrieval")
    add("--csv-separator", default="\t", help="between columns (default: a tab)")
    add("--csv-img-key", default="filepath", help="column of paths (default: %(default)s)")
    add(
        "--csv-caption-key",
        default="title",
        help="column of captions, or of class names (default: %(default)s)",
    )
    add = parser.add_argument_group("on a suite").add_argument
    add("--suite", help="datacomp: the 38 data sets of DataComp, and their average")
    add("--data-root", help="the folder that DataComp's download_evalsets.py filled")
    add = parser.add_argument_group("how").add_argument
    add("--out", help="results: a .json file (default: results.json); with --suite a folder")
    add("--batch-size", type=int, default=64, help="default: %(default)s")
    add(
        "--workers",
        type=int,
        help="loader processes of each device (default: one a core but one, at most 8)",
    )
    add("--precision", help="as in training (default: amp on a GPU, fp32 elsewhere)")
    add(
        "--device", help="cpu, cuda, cuda:N, or several with commas (default: all GPUs, or the CPU)"
    )
    add("--seed", type=int, default=0, help="of a linear probe (default: %(default)s)")
    return parser
