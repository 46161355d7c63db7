"""Other people's exceptions inside our one-line messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
