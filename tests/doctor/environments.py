"""Machines that are not here, as the facts that doctor would have read on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.config.train_config import TrainConfig
from fastclip.doctor import parts
from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Driver, DriverGpu, Import, Machine, Port, Torch, TorchGpu
from fastclip.train import compiling

GPUS = 4
_NAME = "NVIDIA A100-SXM4-80GB"
# As `nvidia-smi topo -m` prints it, without the escape sequences of its first line.
TOPOLOGY = "\n".join(
    [
        "\t"
        + "\t".join([f"GPU{i}" for i in range(GPUS)] + ["NIC0", "CPU Affinity", "NUMA Affinity"]),
        *(
            "\t".join(
                [f"GPU{i}"]
                + [" X " if i == j else "NV4" for j in range(GPUS)]
                + ["PXB", "0-31", "0"]
            )
            for i in range(GPUS)
        ),
        "NIC0\t" + "\t".join(["PXB"] * GPUS + [" X "]),
        "",
        "Legend:",
        "",
        "  X    = Self",
    ]
)

BARE = Machine(
    driver="there is no nvidia-smi",
    torch=Torch(version="2.14.1+cpu", cuda=None, why_no_gpu="Torch not compiled with CUDA enabled"),
    distributions={"torch": "2.14.1"},
    shm_free=8 << 30,
    memory_free=64 << 30,
    cpus=frozenset(range(16)),
    cpu_count=16,
    numa=(frozenset(range(16)),),
)

EVERYTHING = Machine(
    driver=Driver(
        version="580.65.06",
        cuda=(13, 0),
        gpus=tuple(
            DriverGpu(
                index=index,
                uuid=f"GPU-{index}000",
                name=_NAME,
                total_mib=81920,
                used_mib=4,
                compute_mode="Default",
            )
            for index in range(GPUS)
        ),
        topology=TOPOLOGY,
    ),
    torch=Torch(
        version="2.14.1+cu130",
        cuda=(13, 0),
        architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
        gpus=tuple(TorchGpu(name=_NAME, capability=(8, 0)) for _ in range(GPUS)),
    ),
    distributions={
        "torch": "2.14.1",
        "triton": "3.8.0",
        "nvidia-dali-cuda130": "2.4.0",
        "flash-attn": "2.8.3",
        "open-clip-torch": "3.3.0",
    },
    torch_requires=('triton~=3.8.0; platform_system == "Linux"',),
    imports={
        "flash_attn": Import(version="2.8.3"),
        "apex": Import(folder=("__init__.py", "optimizers")),
        "nvidia.dali": Import(version="2.4.0"),
        "triton": Import(version="3.8.0"),
    },
    ports=(Port(name="mlx5_0:1", active=True, rate="200 Gb/sec (4X HDR)", layer="InfiniBand"),),
    interfaces=("eth0", "ib0", "lo"),
    shm_free=256 << 30,
    open_files=65536,
    memory_free=900 << 30,
    cpus=frozenset(range(64)),
    cpu_count=64,
    numa=(frozenset(range(32)), frozenset(range(32, 64))),
    environment={"OMP_NUM_THREADS": "8"},
)


def with_import(machine: Machine, name: str, outcome: Import) -> Machine:
    return replace(machine, imports={**machine.imports, name: outcome})


def with_driver_for(machine: Machine, version: str, cuda: tuple[int, int]) -> Machine:
    """The same machine with another driver."""
    assert isinstance(machine.driver, Driver)
    return replace(machine, driver=replace(machine.driver, version=version, cuda=cuda))


# NVIDIA's is expected, and a project of the same name is installed: its import fails at something of its own.
WRONG_APEX = with_import(
    EVERYTHING,
    "apex",
    Import(
        problem="ImportError: cannot import name 'UnencryptedCookie' from 'pyramid.session'",
        folder=("__init__.py", "models.py", "views.py"),
    ),
)
# torch for CUDA 12 fits this driver, the DALI that is installed does not.
OTHER_DALI = replace(
    with_driver_for(EVERYTHING, "550.90.07", (12, 4)),
    torch=replace(EVERYTHING.torch, version="2.14.1+cu126", cuda=(12, 6)),
)
CRASHING_FLASH = with_import(
    EVERYTHING, "flash_attn", Import(problem="it ended Python with SIGSEGV", fatal=True)
)


def flags(*words: str) -> TrainConfig:
    """The run that these describe, of the seed script's kind; later flags win."""
    usual = [
        *("--model", "ViT-B-32-256"),
        *("--dataset-type", "synthetic"),
        *("--train-num-samples", "100000"),
        *("--precision", "amp_bf16"),
        *("--batch-size", "896"),
        *("--logs", "none"),
    ]
    return resolve(parse_args([*usual, *words]))


def act_as_gpu(patch: pytest.MonkeyPatch) -> None:
    """An A100 as far as the questions go that the trainer's own functions ask torch."""
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: _NAME)
    patch.setattr(compiling, "compiler_problem", lambda device: None)

    def fake_model(device: torch.device) -> nn.Module:
        with FakeTensorMode():
            return nn.Linear(1, 1, device=device)

    patch.setattr(parts, "smallest_model", fake_model)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}
