"""`--copy-codebase`: the code that trains, beside what it trained."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import fastclip
import fastclip_kernels
from fastclip.errors import UserError

logger = logging.getLogger(__name__)


def copy_codebase(run_folder: Path) -> None:
    """Copy the two packages to `run_folder`/code (the reference copies the whole site-packages of a pip install)."""
    target = run_folder / "code"
    if target.exists():
        raise UserError(f"{target}: already there. Use --name to give the run another name")
    for package in (fastclip, fastclip_kernels):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    logger.info("Copied the code to %s", target)
