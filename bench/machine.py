"""Where figures come from, and how they are written down."""

from __future__ import annotations

import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

import fastclip_kernels
from fastclip_kernels.backend import interpreting


def cpu_name() -> str:
    """As /proc has it; elsewhere what Python knows, which may be nothing but the architecture."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0]}, {len(names)} threads" if names else platform.processor() or platform.machine()
    )


def machine(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know about where figures come from."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "triton": triton_version,
        "fastclip_kernels": fastclip_kernels.__version__,
        "python": platform.python_version(),
        "interpreted": interpreting(),  # Triton's kernels, by Python: such times say nothing
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
