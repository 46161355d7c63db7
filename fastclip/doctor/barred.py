"""Keeps imports that are known to kill Python out of this process, and notes which were wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Barred:
    """A finder that refuses `reasons`' packages with an ImportError, as a broken package would; `wanted` by whom."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self._reasons = reasons
        self.wanted: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        reason = self._reasons.get(name)
        if reason is not None:
            self.wanted.add(name)
            raise ImportError(reason)


@contextmanager
def barred(reasons: Mapping[str, str]) -> Iterator[Barred]:
    """Within, importing a package that `reasons` names raises ImportError with the reason."""
    finder = Barred(reasons)
    sys.meta_path.insert(0, finder)
    try:
        yield finder
    finally:
        sys.meta_path.remove(finder)
