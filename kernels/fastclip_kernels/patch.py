"""This package's losses in the place of those of an installed `open_clip`, for code whose imports
cannot be changed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from .loss.modules import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss

# Versions of open_clip whose losses have the signatures and the mathematics of ours.
KNOWN_VERSIONS = ("3.3.0",)
# Modules of these packages may have imported a loss by name; user code is left alone.
_PACKAGES = ("open_clip", "open_clip_train")

_OURS: Mapping[str, type] = {
    "ClipLoss": ClipLoss,
    "CoCaLoss": CoCaLoss,
    "DistillClipLoss": DistillClipLoss,
    "SigLipLoss": SigLipLoss,
}
# open_clip's own, by name; kept from the first patch on, for a second one finds ours in their place
_theirs: dict[str, type] = {}


def patch_open_clip() -> Callable[[], None]:
    """Put ClipLoss, CoCaLoss, DistillClipLoss and SigLipLoss into the installed `open_clip`.

    They replace open_clip's classes wherever a module of `open_clip` or `open_clip_train` that is
    imported already holds them by name; what those packages import later gets ours too. Losses that
    exist, and names that other modules imported before, stay as they are: call this first.

    Returns:
        `unpatch`, which puts open_clip's classes back everywhere. There is one patch, however often
        it is made: any `unpatch` ends it, and ending it twice does nothing.

    Raises:
        ImportError: open_clip is not installed.
        RuntimeError: it is of a version that this package does not know.
    """
    losses = _open_clip_losses()
    for name, ours in _OURS.items():
        if getattr(losses, name) is not ours:
            _theirs[name] = getattr(losses, name)
    theirs = dict(_theirs)
    _exchange(theirs, _OURS)

    def unpatch() -> None:
        _exchange(_OURS, theirs)

    return unpatch


def _open_clip_losses() -> ModuleType:
    """`open_clip.loss` of a known version."""
    try:
        version = importlib.import_module("open_clip").__version__
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise  # it is there, and lacks something itself
        raise ImportError(
            "patch_open_clip: open_clip is not installed; pip install"
            f" open_clip_torch=={KNOWN_VERSIONS[-1]}, or import the losses from {__package__}",
            name="open_clip",
        ) from None
    if version not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"patch_open_clip: open_clip {version} is not a version whose losses are known to be"
            f" these; known: {', '.join(KNOWN_VERSIONS)}"
        )
    return importlib.import_module("open_clip.loss")


def _exchange(old: Mapping[str, type], new: Mapping[str, type]) -> None:
    for module in _modules():
        for name in old.keys() & new.keys():
            if vars(module).get(name) is old[name]:
                setattr(module, name, new[name])


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and isinstance(module, ModuleType):
            yield module
