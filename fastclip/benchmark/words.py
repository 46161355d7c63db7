"""Class names and sentence templates from text files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from fastclip.errors import DataError, InputMissing

logger = logging.getLogger(__name__)

PLAIN_TEMPLATE = "a photo of a {}."


def read_classnames(path: Path) -> tuple[str, ...]:
    """One name a line; class n is line n + 1. Raises InputMissing or DataError; warns of duplicates.

    Two classes of one name are allowed, since published lists have some (ImageNet's has two), but
    the second of them can never be predicted.
    """
    names = read_lines(path)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        lines = " and ".join(str(i + 1) for i, name in enumerate(names) if name == twice[0])
        logger.warning(
            "%s: lines %s are the same class name, %r%s: only the first of them can be predicted",
            path,
            lines,
            twice[0],
            more,
        )
    return names


def read_templates(path: Path) -> tuple[str, ...]:
    """One sentence a line with {c} (or {}) where the class name goes; returned with {}."""
    templates = tuple(line.replace("{c}", "{}") for line in read_lines(path))
    for number, template in enumerate(templates, start=1):
        if template.count("{}") == 0:
            raise DataError(f"{path}: line {number}: no {{c}} for the class name: {template!r}")
    return templates


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file without white space around them; none may be blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputMissing(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = tuple(line.strip() for line in text.rstrip().splitlines())
    if not lines:
        raise DataError(f"{path}: the file is empty")
    blank = [number for number, line in enumerate(lines, start=1) if not line]
    if blank:
        raise DataError(
            f"{path}: line {blank[0]} is blank; a blank line shifts the number of every class after it"
        )
    return lines
