"""The command `fastclip`: finds the subcommand, and turns exceptions into exit statuses."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from fastclip import __version__
from fastclip.cli.job import Job
from fastclip.cli.stdout import flush, silence
from fastclip.errors import ExitCode, FastclipError, UserError

# name -> (module with `prepare(argv) -> Job`, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("fastclip.cli.train", "train or evaluate a CLIP model, with OpenCLIP's flags"),
    "eval": (
        "fastclip.cli.eval",
        "evaluate a checkpoint: zero-shot, retrieval, linear probe, suite",
    ),
    "export": ("fastclip.cli.export", "a checkpoint as a folder for open_clip or transformers"),
    "data": ("fastclip.cli.data", "check shards, pack them anew, make a csv of labelled pictures"),
    "doctor": ("fastclip.cli.doctor", "look at this machine for a run with these flags of train"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (the process's own if None) and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        job = _prepare(words)
        if job is None:
            return ExitCode.DONE
    except FastclipError as error:
        _report(f"fastclip {words[0]}" if words and words[0] in COMMANDS else "fastclip", error)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    return _run(job)


def _prepare(words: Sequence[str]) -> Job | None:
    """The job that `words` ask for, or None where printing was all of it."""
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
        elif words[0] == "--version":
            print(f"fastclip {__version__}")
        elif words[0] in COMMANDS:
            prepare = cast(
                Callable[[Sequence[str]], Job], import_module(COMMANDS[words[0]][0]).prepare
            )
            return prepare(words[1:])
        else:
            raise UserError(_unknown(words[0]))
        flush()
    except SystemExit:  # argparse, after it printed the help
        flush()
    except BrokenPipeError:  # `fastclip --help | head`: the reader has seen enough
        silence()
    return None


def _run(job: Job) -> int:
    try:
        status = job.run()
    except FastclipError as error:
        if job.debug:
            traceback.print_exc()
        _report("fastclip", error)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except Exception:
        traceback.print_exc()
        return ExitCode.BUG
    return ExitCode.DONE if status is None else status


def _report(who: str, error: FastclipError) -> None:
    for line in str(error).split("\n"):
        print(f"{who}: error: {line}", file=sys.stderr)


def _interrupted() -> int:
    print("fastclip: interrupted", file=sys.stderr)
    return ExitCode.INTERRUPTED


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: fastclip COMMAND ...\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  --help     this text; `fastclip COMMAND --help` lists the flags of a command\n"
        "  --version  the installed version"
    )


def _unknown(word: str) -> str:
    if word.startswith("-"):
        return f"{word}: the command comes first, as in `fastclip train {word} ...`"
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(COMMANDS)}"
    return f"unknown command {word!r}; {hint}"
