"""Folders that a run writes to: logs and checkpoints, and the caches of compilers."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case
from fastclip.errors import ExitCode

_MOMENTS = 2  # AdamW keeps two numbers for each parameter that is trained


def check(case: Case) -> list[Finding]:
    return [_logs(case), *_caches(case)]


def obstacle(folder: Path) -> str | None:
    """Why nothing can be written into `folder`, or it cannot be made; None if it can. Leaves nothing behind."""
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place}: {error.strerror}"


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return place


def _logs(case: Case) -> Finding:
    config = case.config
    if not config.log.enabled:
        return Finding("logs", "ok", "--logs none: nothing is kept")
    folder = Path(config.log.logs)
    problem = obstacle(folder)
    if problem is not None:
        return Finding(
            "logs",
            "broken",
            f"--logs {folder}: cannot write to {problem}",
            "choose a folder that can be written",
            ExitCode.CANNOT_WRITE,
        )
    free = shutil.disk_usage(existing(folder)).free
    size, count = checkpoint_bytes(case), checkpoints(case)
    if size is None or count == 0:
        return Finding("logs", "ok", f"{folder}: {free / 1e9:,.1f} GB free")
    found = f"{folder}: {free / 1e9:,.1f} GB free; {count} checkpoints of {size / 1e9:.2f} GB"
    if free < 2 * size:  # one in place and one being written beside it
        return Finding(
            "logs", "broken", found, "make room, or choose another --logs", ExitCode.CANNOT_WRITE
        )
    if free < count * size:
        return Finding(
            "logs",
            "broken",
            found,
            "--keep-last N, a larger --save-frequency, or more room",
        )
    return Finding("logs", "ok", found)


def checkpoint_bytes(case: Case) -> int | None:
    """Weights, and AdamW's moments of those that are trained; None where the model is not known."""
    if case.built.model is None:
        return None
    weights = [
        (p.numel() * p.element_size(), p.requires_grad) for p in case.built.model.parameters()
    ]
    return sum(size * (1 + _MOMENTS * trained) for size, trained in weights)


def checkpoints(case: Case) -> int:
    """How many files a run to its end leaves; 0 for one that only evaluates."""
    settings, epochs = case.config.checkpoint, case.config.epochs
    if not case.config.trains or epochs == 0:
        return 0
    every = settings.save_frequency
    kept = 1 if every <= 0 else -(-epochs // every)
    if settings.files_kept:
        kept = min(kept, settings.files_kept)
    return kept + settings.save_most_recent


def _caches(case: Case) -> Iterator[Finding]:
    compiles = case.uses_gpu or case.config.model.torchcompile
    status = ExitCode.ENVIRONMENT if compiles and case.config.trains else ExitCode.DONE
    for variable, folder in _cache_folders(case):
        problem = obstacle(folder)
        name = variable.lower().replace("_", " ").removesuffix(" dir")
        if problem is None:
            yield Finding(name, "ok", f"{folder}")
        else:
            yield Finding(
                name,
                "broken",
                f"{folder} cannot be written ({problem})",
                f"export {variable}=FOLDER with one that can: compiled kernels are kept there",
                status,
            )


def _cache_folders(case: Case) -> Iterator[tuple[str, Path]]:
    """(variable that moves it, folder) by the rules of triton and torch."""
    environment = case.machine.environment
    home = environment.get("TRITON_HOME", environment.get("HOME", "~"))
    yield (
        "TRITON_CACHE_DIR",
        Path(environment.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")),
    )
    inductor = environment.get("TORCHINDUCTOR_CACHE_DIR")
    if inductor is None:
        inductor = os.path.join(tempfile.gettempdir(), f"torchinductor_{_user()}")
    yield "TORCHINDUCTOR_CACHE_DIR", Path(inductor)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
