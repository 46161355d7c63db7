"""The words zero-shot classification asks with: class names and sentence templates."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "imagenet"


@cache
def imagenet_classnames() -> tuple[str, ...]:
    """1,000 names; class n of the folder order is entry n."""
    return _lines("classnames.txt")


@cache
def imagenet_templates() -> tuple[str, ...]:
    """80 sentences with one `{}` each, where the class name goes."""
    return _lines("templates.txt")


def fill(template: str, classname: str) -> str:
    return template.replace("{}", classname)


def _lines(name: str) -> tuple[str, ...]:
    return tuple((_FOLDER / name).read_text(encoding="utf-8").splitlines())
