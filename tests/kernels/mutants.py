"""Copies of the package with one error planted in each, to see the parity checks go red."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import fastclip_kernels


class Planted(NamedTuple):
    """One error: in `file` of the package, `right` (which is there once) becomes `wrong`."""

    name: str
    file: str
    right: str
    wrong: str


def plant(error: Planted, folder: Path) -> ModuleType:
    """The package with the error in it, imported under a name of its own beside the right one.

    Each process needs a `folder` of its own.
    """
    name = "mutant_" + "".join(c if c.isalnum() else "_" for c in error.name)
    copy = folder / name
    shutil.copytree(Path(fastclip_kernels.__file__).parent, copy)
    file = copy / error.file
    source = file.read_text()
    assert source.count(error.right) == 1, f"{error.name}: {source.count(error.right)} places"
    file.write_text(source.replace(error.right, error.wrong))
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
