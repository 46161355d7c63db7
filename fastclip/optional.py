"""The only place that tries to import a package which may not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from fastclip.errors import EnvironmentProblem


def find(name: str) -> ModuleType | str:
    """The module `name`, or the reason in words why it cannot be used.

    A package that is installed but broken (a compiled extension built for another torch, say) raises
    whatever it likes at import, so every exception counts as "cannot be used" and its text is the reason.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return f"{error.name} is not installed"
        return f"{name} is installed but needs {error.name}, which is not"
    except Exception as error:
        return f"{name} is installed but fails to import: {type(error).__name__}: {error}"


def require(name: str, needed_by: str, install: str) -> ModuleType:
    """The module `name`, or EnvironmentProblem that says who needs it and how to install it."""
    module = find(name)
    if isinstance(module, str):
        raise EnvironmentProblem(f"{needed_by} needs {name}: {module}. Install it with: {install}")
    return module
