"""argparse for the smaller commands: a mistake is one line, not the usage."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from fastclip.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """No abbreviations; raises UserError for what argparse would print and exit with."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(re.sub(r"^argument (\S+): ", r"\1: ", message))
