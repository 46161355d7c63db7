"""What is installed and what the GPUs are set to, for whoever reads the figures later.

    python -m bench.environment --out FOLDER

Writes environment.json.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.machine import machine, write
from fastclip.errors import ExitCode

PACKAGES = (
    "open_clip_torch", "flash-attn", "inf-cl", "memeff", "siglip-kernel", "nvidia-dali-cuda120",
    "nvidia-dali-cuda130", "webdataset", "tokenizers", "pytest-benchmark", "numpy",
)  # fmt: skip
_ASKED = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "power.limit", "temperature.gpu", "persistence_mode", "mig.mode.current", "ecc.mode.current",
)  # fmt: skip


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def gpus() -> list[dict[str, str]] | str:
    """What nvidia-smi says of each, or why it says nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "no nvidia-smi"
    words = [tool, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if run.returncode:
        return (run.stdout + run.stderr).strip().splitlines()[-1][:200]
    lines = [line.split(", ") for line in run.stdout.splitlines()]
    return [dict(zip(_ASKED, line, strict=False)) for line in lines]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for environment.json")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        **machine(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpus": gpus(),
        "packages": {name: installed(name) for name in PACKAGES},
    }
    for i in range(torch.cuda.device_count()):
        try:
            torch.zeros(1, device=f"cuda:{i}")
        except RuntimeError as error:  # taken by somebody else, or set up wrongly
            print(f"GPU {i} cannot be used: {str(error).splitlines()[0]}")
            return ExitCode.ENVIRONMENT
    write(options.out / "environment.json", found)
    print(
        f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}, triton {found['triton']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
