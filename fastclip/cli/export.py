"""`fastclip export`: a checkpoint as a folder that open_clip or transformers opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastclip.cli.job import Job
from fastclip.cli.one_line_parser import OneLineParser
from fastclip.cli.stdout import say
from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve_model
from fastclip.errors import InputMissing, UserError

_MODEL_FLAGS = {
    *("model", "tokenizer", "cache_dir", "force_image_size", "force_context_length"),
    *("force_quick_gelu", "force_custom_text"),
    *("image_mean", "image_std", "image_interpolation", "image_resize_mode"),
}


def prepare(argv: Sequence[str]) -> Job:
    """Parse and check `argv`; raises UserError, and exits after `--help`."""
    own, words = _parser().parse_known_args(argv)
    if own.run is None and (own.checkpoint is None or not _names_model(words)):
        raise UserError("give --model and --checkpoint, or the folder of a run: --run LOGS/NAME")

    def run() -> None:
        from fastclip.export.export import ExportConfig, export
        from fastclip.export.run_record import model_words, read_run

        record = None if own.run is None else read_run(own.run)
        model = _model_flags([*([] if record is None else model_words(record)), *words])
        lines = export(
            ExportConfig(
                model=resolve_model(model),
                checkpoint=own.checkpoint or _newest_checkpoint(own.run),
                to=own.to,
                out=own.out,
                title=own.title or own.out.absolute().name,
                run=record,
                results=tuple(own.results),
            )
        )
        say("\n".join([*lines, f"exported to {own.out}; README.md is its model card"]))

    _model_flags(words)  # mistakes are reported before anything loads
    return Job(run=run, debug=False)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="fastclip export",
        description="Write a checkpoint as a folder that open_clip or transformers opens, with tokenizer, "
        "preprocessing and a model card. The folder is opened again and features are compared "
        "before it gets its name.",
        epilog="The model is said by fastclip train's own flags: --model, --force-image-size, "
        "--force-context-length, --force-quick-gelu, --force-custom-text, --image-mean, --image-std, "
        "--image-interpolation, --image-resize-mode, --tokenizer.",
    )
    add = parser.add_argument
    add("--to", required=True, choices=["open_clip", "transformers"], help="the layout")
    add("--out", required=True, type=Path, metavar="FOLDER", help="new, or empty")
    add("--checkpoint", type=Path, metavar="FILE", help="epoch_N.pt, a state dict or safetensors")
    add(
        "--run",
        type=Path,
        metavar="LOGS/NAME",
        help="the run's folder: says the model and fills the card; its newest checkpoint is taken "
        "unless --checkpoint is given",
    )
    add("--title", help="name of the model on its card [the folder's]")
    add(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="what `fastclip eval` wrote, for the card",
    )
    return parser


def _names_model(words: Sequence[str]) -> bool:
    return any(word == "--model" or word.startswith("--model=") for word in words)


def _model_flags(words: Sequence[str]) -> Any:
    """The parsed flags of `fastclip train` in `words`; UserError for one that says nothing of the model."""
    namespace = parse_args(words)
    plain = vars(parse_args(["--model", namespace.model]))
    for name, value in vars(namespace).items():
        if name not in _MODEL_FLAGS and value != plain[name]:
            raise UserError(f"--{name.replace('_', '-')}: not a flag of fastclip export")
    return namespace


def _newest_checkpoint(folder: Path) -> Path:
    from fastclip.train.checkpoint import find_latest

    found = find_latest(folder / "checkpoints", unsafe=False)
    if found is None:
        raise InputMissing(f"--run {folder}: no checkpoint there; give one with --checkpoint")
    return found
