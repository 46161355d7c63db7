"""Questions that may hang or kill an interpreter, put to another one.

A compiled extension built for another torch can end Python at import, and a broken driver can hang in its first call.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastclip.doctor.machine import Import

SECONDS = 120.0  # importing torch from a busy network drive takes its time

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
_IMPORT = (
    _BEGIN
    + """
import importlib
module = importlib.import_module(sys.argv[2])
lacks = [name for name in sys.argv[3:] if not hasattr(module, name)]
print(json.dumps({"version": str(getattr(module, "__version__", "")), "lacks": lacks}))
"""
)
_TORCH = (
    _BEGIN
    + """
import os, torch
gpus, why, allocator = [], "", ""
settings = os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
try:
    if settings is not None:
        judge = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # torch 2.10 and newer
        (judge or torch.cuda.memory._set_allocator_settings)(settings)
except Exception as error:
    allocator = str(error)
try:
    torch.cuda.init()
except Exception as error:
    why = str(error)
for index in range(torch.cuda.device_count()):
    gpu = {}
    try:
        properties = torch.cuda.get_device_properties(index)
        gpu = {"name": properties.name, "capability": [properties.major, properties.minor]}
        torch.ones(1, device=f"cuda:{index}").item()
    except Exception as error:
        gpu["problem"] = str(error)
    gpus.append(gpu)
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
    "architectures": torch.cuda.get_arch_list(), "gpus": gpus, "why": why, "allocator": allocator,
}))
"""
)


def find_import(
    package: str, module: str, wanted: Sequence[str], seconds: float = SECONDS
) -> Import | None:
    """What becomes of importing `wanted` from `module` of `package`; None where there is no such package.

    Nothing of the package is imported in this process.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    folder = tuple(
        sorted(
            entry.name
            for place in spec.submodule_search_locations or ()
            if Path(place).is_dir()
            for entry in Path(place).iterdir()
        )
    )
    answer, problem, fatal = ask(_IMPORT, [module, *wanted], seconds)
    if problem is not None:
        return Import(problem=problem, fatal=fatal, folder=folder)
    return Import(version=answer["version"], lacks=tuple(answer["lacks"]), folder=folder)


def ask_torch(seconds: float = SECONDS) -> tuple[Any, str | None]:
    """torch's versions and its GPUs, each with what came of using it; or (None, why torch cannot be asked)."""
    answer, problem, _ = ask(_TORCH, [], seconds)
    return answer, problem


def ask(code: str, words: Sequence[str], seconds: float) -> tuple[Any, str | None, bool]:
    """(what `code` printed last, as JSON; what went wrong or None; whether that took the interpreter with it)."""
    command = [sys.executable, "-c", code, json.dumps(sys.path), *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not end within {seconds:.0f} s", True
    if done.returncode < 0:
        return None, f"it ended Python with {_signal(-done.returncode)}", True
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return None, lines[-1] if lines else f"it ended Python with {done.returncode}", False
    try:
        return json.loads(done.stdout.splitlines()[-1]), None, False
    except (IndexError, ValueError):  # the package ended Python in good order, or closed the output
        return None, "it ended Python without a word", True


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
