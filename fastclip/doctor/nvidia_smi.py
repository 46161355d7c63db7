"""What nvidia-smi tells: driver, GPUs, who uses them, how they are joined."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from fastclip.doctor.machine import Driver, DriverGpu, Release, release

_SECONDS = 30.0  # a GPU that has fallen off the bus lets it hang
_GPU_FIELDS = (
    "index,uuid,name,driver_version,memory.total,memory.used,compute_mode,mig.mode.current"
)
_APP_FIELDS = "gpu_uuid,pid,used_memory"
_UNDERLINE = re.compile(r"\x1b\[[0-9;]*m")  # in the first line of its table of links


def read_driver(environment: Mapping[str, str]) -> Driver | str:
    """The driver and its GPUs, or in words why there is none."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return "there is no nvidia-smi"
    table = _output(program, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits")
    if table is None:
        return _failure(program)
    rows = [line.split(", ") for line in table.splitlines() if line.count(", ") == 7]
    if not rows:
        return "nvidia-smi lists no GPU"
    processes = _processes(
        _output(program, f"--query-compute-apps={_APP_FIELDS}", "--format=csv,noheader,nounits")
    )
    gpus = tuple(
        DriverGpu(
            index=_number(index),
            uuid=uuid,
            name=name,
            total_mib=_number(total),
            used_mib=_number(used),
            compute_mode=mode,
            mig=mig == "Enabled",
            processes=tuple(processes.get(uuid, ())),
        )
        for index, uuid, name, _, total, used, mode, mig in rows
    )
    return Driver(
        version=rows[0][3],
        cuda=_cuda(_output(program) or ""),
        gpus=gpus,
        topology=_UNDERLINE.sub("", _output(program, "topo", "-m") or ""),
    )


def _output(program: str, *words: str) -> str | None:
    """What it prints; None where it fails, hangs or cannot be started."""
    try:
        done = subprocess.run(
            [program, *words], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _failure(program: str) -> str:
    try:
        done = subprocess.run(
            [program], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi does not answer within {_SECONDS:.0f} s: the driver hangs"
    except OSError as error:
        return f"nvidia-smi cannot be started: {error.strerror}"
    said = " ".join((done.stdout + done.stderr).split())
    return f"nvidia-smi fails with status {done.returncode}: {said[:200]}"


def _number(text: str) -> int:
    """0 for the "[N/A]" of what a device does not tell."""
    return int(text) if text.isdigit() else 0


def _cuda(banner: str) -> Release | None:
    found = re.search(r"CUDA (?:\w+ )?Version\s*:\s*(\d+\.\d+)", banner)
    return release(found[1]) if found else None


def _processes(table: str | None) -> dict[str, list[str]]:
    """By the uuid of their GPU. Inside a container those outside it are not listed."""
    found: dict[str, list[str]] = {}
    for line in (table or "").splitlines():
        uuid, _, rest = line.partition(", ")
        pid, _, used = rest.partition(", ")
        if pid:
            memory = f", {used} MiB" if used.isdigit() else ""
            found.setdefault(uuid, []).append(f"process {pid}{memory}")
    return found
