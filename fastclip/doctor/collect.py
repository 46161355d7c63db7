"""Reads the facts of this machine. Nothing here judges."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fastclip.doctor.child import ask_torch, find_import
from fastclip.doctor.machine import Machine, Port, Torch, TorchGpu, release
from fastclip.doctor.nvidia_smi import read_driver

# package -> the module of it that the trainer imports, and the names that it takes from there
IMPORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "flash_attn": ("flash_attn", ("flash_attn_func", "flash_attn_varlen_func")),
    "flash_attn_interface": ("flash_attn_interface", ("flash_attn_func", "flash_attn_varlen_func")),
    "apex": ("apex.optimizers", ("FusedAdam",)),
    "nvidia.dali": ("nvidia.dali", ("pipeline_def",)),
    "triton": ("triton", ("jit",)),
}
_NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes about 2**63 for "none"


def collect(root: Path = Path("/")) -> Machine:
    """The machine as it is now; `root` is where /proc, /sys and /dev lie."""
    environment = dict(os.environ)
    driver = read_driver(environment)  # before torch, whose own context would be seen on the GPU
    with ThreadPoolExecutor() as pool:  # each waits for a Python of its own
        asked = pool.submit(ask_torch)
        outcomes = pool.map(lambda package: find_import(package, *IMPORTS[package]), IMPORTS)
        imports = dict(zip(IMPORTS, outcomes, strict=True))
        torch = _torch(*asked.result())
    found = {name: outcome for name, outcome in imports.items() if outcome is not None}
    return Machine(
        environment=environment,
        driver=driver,
        torch=torch,
        distributions=_distributions(),
        torch_requires=tuple(importlib.metadata.requires("torch") or ()),
        imports=found,
        cpus=frozenset(os.sched_getaffinity(0)),
        cpu_count=os.cpu_count() or 1,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        **_of_files(root),
    )


def _torch(answer: Any, problem: str | None) -> Torch:
    if problem is not None:
        text = importlib.metadata.version("torch")
        return Torch(version=text, cuda=None, why_no_gpu=f"torch cannot be asked: {problem}")
    return Torch(
        version=answer["version"],
        cuda=release(answer["cuda"]) if answer["cuda"] else None,
        hip=answer["hip"],
        architectures=tuple(answer["architectures"]),
        gpus=tuple(
            TorchGpu(
                name=gpu.get("name", ""),
                capability=tuple(gpu.get("capability", (0, 0))),
                problem=_first_line(gpu.get("problem")),
            )
            for gpu in answer["gpus"]
        ),
        why_no_gpu=_first_line(answer["why"]) or "",
        allocator_problem=_first_line(answer["allocator"]),
    )


def _first_line(text: str | None) -> str | None:
    return text.strip().partition("\n")[0] if text else None


def _distributions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def _of_files(root: Path) -> dict[str, Any]:
    read = partial(_read, root)
    quota, _, period = read("sys/fs/cgroup/cpu.max").partition(" ")
    limits = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
    limit = next((int(text) for text in map(read, limits) if text.isdigit()), _NO_LIMIT)
    free = re.search(r"^MemAvailable:\s+(\d+) kB", read("proc/meminfo"), re.MULTILINE)
    shm = root / "dev/shm"
    return {
        "cpu_quota": int(quota) / int(period) if quota.isdigit() and period.isdigit() else None,
        "memory_limit": limit if limit < _NO_LIMIT else None,
        "memory_free": int(free[1]) << 10 if free else None,
        "shm_free": shutil.disk_usage(shm).free if shm.is_dir() else None,
        "numa": _numa(root),
        "interfaces": _names(root / "sys/class/net"),
        "ports": tuple(_ports(root / "sys/class/infiniband")),
    }


def _read(root: Path, path: str) -> str:
    """A small file's text; "" where there is none."""
    try:
        return (root / path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def _numa(root: Path) -> tuple[frozenset[int], ...]:
    nodes = sorted(root.glob("sys/devices/system/node/node[0-9]*"))
    sets = (_cpu_list(_read(node, "cpulist")) for node in nodes)
    return tuple(cpus for cpus in sets if cpus)  # memory may have a node without CPUs


def _cpu_list(text: str) -> frozenset[int]:
    """ "0-3,8" is {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _ports(folder: Path) -> list[Port]:
    return [
        Port(
            name=f"{adapter}:{port}",
            active="ACTIVE" in _read(folder, f"{adapter}/ports/{port}/state"),
            rate=_read(folder, f"{adapter}/ports/{port}/rate"),
            layer=_read(folder, f"{adapter}/ports/{port}/link_layer"),
        )
        for adapter in _names(folder)
        for port in _names(folder / adapter / "ports")
    ]
