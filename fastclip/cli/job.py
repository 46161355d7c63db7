"""What a subcommand hands to `main` once its command line has been understood."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastclip.errors import ExitCode


class Job(NamedTuple):
    run: Callable[[], ExitCode | None]  # None: done
    debug: bool  # show the traceback of errors that are otherwise one line
