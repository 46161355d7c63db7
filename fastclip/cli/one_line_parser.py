"""argparse for the smaller commands: a mistake is one line, not the usage."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from fastclip.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """No abbreviations; raises UserError for what argparse would print and exit with.

    Takes argparse's own keywords, and `hint`, which ends every message. Its sub-parsers are of this class.
    """

    def __init__(self, *, hint: str = "", **keywords: Any) -> None:
        super().__init__(**keywords, allow_abbrev=False)
        self._hint = hint

    def error(self, message: str) -> NoReturn:
        raise UserError(re.sub(r"^argument (\S+): ", r"\1: ", message) + self._hint)
