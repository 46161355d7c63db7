"""Facts as they stand: in a made-up tree of /sys and /proc, from a stub of nvidia-smi, of packages that misbehave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastclip.doctor.child import find_import
from fastclip.doctor.collect import _of_files
from fastclip.doctor.machine import Driver, Port
from fastclip.doctor.nvidia_smi import read_driver


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_files(tmp_path: Path) -> None:
    port = "sys/class/infiniband/mlx5_0/ports/1"
    write(
        tmp_path,
        {
            "sys/fs/cgroup/cpu.max": "350000 100000\n",
            "sys/fs/cgroup/memory.max": "17179869184\n",
            "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   2048 kB\n",
            "dev/shm/x": "",
            "sys/devices/system/node/node0/cpulist": "0-1,4\n",
            "sys/devices/system/node/node1/cpulist": "2-3\n",
            "sys/devices/system/node/node2/cpulist": "\n",
            "sys/class/net/eth0/mtu": "1500",
            f"{port}/state": "4: ACTIVE\n",
            f"{port}/rate": "200 Gb/sec (4X HDR)\n",
            f"{port}/link_layer": "InfiniBand\n",
            "sys/class/infiniband/mlx5_1/ports/1/state": "1: DOWN\n",
        },
    )
    facts = _of_files(tmp_path)
    assert facts.pop("shm_free") > 0
    assert facts == {
        "cpu_quota": 3.5,
        "memory_limit": 16 << 30,
        "memory_free": 2 << 20,
        "numa": (frozenset({0, 1, 4}), frozenset({2, 3})),
        "interfaces": ("eth0",),
        "ports": (
            Port(name="mlx5_0:1", active=True, rate="200 Gb/sec (4X HDR)", layer="InfiniBand"),
            Port(name="mlx5_1:1", active=False, rate="", layer=""),
        ),
    }


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n"}, 1 << 30),
    ],
)
def test_memory_limits(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert _of_files(tmp_path)["memory_limit"] == limit


def stub(folder: Path, script: str) -> dict[str, str]:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": str(folder)}


def test_nvidia_smi(tmp_path: Path) -> None:
    environment = stub(
        tmp_path,
        """case "$1" in
--query-gpu=*)
  echo "0, GPU-a, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 1024, Default, Disabled"
  echo "1, GPU-b, NVIDIA H100 80GB HBM3, 580.65.06, [N/A], 0, Exclusive_Process, [N/A]";;
--query-compute-apps=*) echo "GPU-a, 12, 1000"; echo "GPU-a, 13, [N/A]";;
topo) printf '\\t\\033[4mGPU0\\tGPU1\\033[0m\\n';;
*) echo "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0 |";;
esac""",
    )
    driver = read_driver(environment)
    assert isinstance(driver, Driver)
    assert (driver.version, driver.cuda) == ("580.65.06", (13, 0))
    assert driver.topology == "\tGPU0\tGPU1\n"
    first, second = driver.gpus
    assert (first.name, first.total_mib, first.used_mib) == ("NVIDIA H100 80GB HBM3", 81559, 1024)
    assert first.processes == ("process 12, 1000 MiB", "process 13")
    assert (first.mig, second.mig) == (False, False)
    assert (second.index, second.total_mib, second.compute_mode) == (1, 0, "Exclusive_Process")
    assert second.processes == ()


def test_no_nvidia_smi_and_one_that_fails(tmp_path: Path) -> None:
    assert read_driver({"PATH": str(tmp_path)}) == "there is no nvidia-smi"
    environment = stub(tmp_path, "echo no word from the driver; exit 9")
    assert read_driver(environment) == "nvidia-smi fails with status 9: no word from the driver"


@pytest.mark.parametrize(
    ("code", "problem", "fatal"),
    [
        ("import os\nos.abort()", "it ended Python with SIGABRT", True),
        ("import os\nos._exit(0)", "it ended Python without a word", True),
        ("import time\ntime.sleep(60)", "it did not end within 1 s", True),
        ("raise OSError('undefined symbol: _ZN3c10')", "OSError: undefined symbol: _ZN3c10", False),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'", False),
        ("print('hello')\n__version__ = '1.2'\nwanted = 1", None, False),
    ],
)
def test_imports(
    code: str, problem: str | None, fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"misbehaving/__init__.py": code, "misbehaving/part.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_import(
        "misbehaving", "misbehaving", ["wanted", "other"], seconds=1.0 if fatal else 60.0
    )
    assert found is not None
    assert (found.problem, found.fatal) == (problem, fatal)
    assert set(found.folder) >= {"__init__.py", "part.py"}
    if problem is None:
        assert (found.version, found.lacks) == ("1.2", ("other",))
    assert "misbehaving" not in sys.modules


def test_no_package() -> None:
    assert find_import("not_there_at_all", "not_there_at_all", []) is None
    assert find_import("not_there_at_all.part", "not_there_at_all.part", []) is None
