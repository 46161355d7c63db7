"""Writing to standard output, whose reader may leave early: `fastclip --help | head`."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print `text`; a reader who has seen enough is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Python flushes stdout once more at exit; let that go nowhere instead of complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
