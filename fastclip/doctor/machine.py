"""The facts that checks judge, as plain values: `collect.py` reads them here, tests make them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from fastclip.config.train_config import TrainConfig
from fastclip.data.packing import PackRule
from fastclip.train.distributed import local_size

Release = tuple[int, ...]


def release(text: str) -> Release:
    """The numbers of a version: "2.14.1+cu130" is (2, 14, 1)."""
    return Version(text).release


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverGpu:
    """A GPU as nvidia-smi lists it, whether torch sees it or not."""

    index: int
    uuid: str
    name: str
    total_mib: int
    used_mib: int
    compute_mode: str  # Default, Exclusive_Process, Prohibited
    mig: bool = False
    processes: tuple[str, ...] = ()  # "process 4711, 39000 MiB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    version: str
    cuda: Release | None  # the newest CUDA that it runs; None: it does not say
    gpus: tuple[DriverGpu, ...]
    topology: str = ""  # `nvidia-smi topo -m`


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchGpu:
    """A GPU as torch numbers it. `problem` is what came of putting a tensor on it; None: it worked."""

    name: str = ""
    capability: tuple[int, int] = (0, 0)
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    version: str
    cuda: Release | None  # that it was built for
    hip: str | None = None
    architectures: tuple[str, ...] = ()  # sm_80, ...
    gpus: tuple[TorchGpu, ...] = ()
    why_no_gpu: str = ""  # in torch's words
    allocator_problem: str | None = None  # what torch says of its settings; None: nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """How importing a package in a Python of its own ended."""

    problem: str | None = None  # None: it worked
    fatal: bool = False  # the interpreter itself ended, or hung
    version: str = ""
    lacks: tuple[str, ...] = ()  # names looked for that it does not have
    folder: tuple[str, ...] = ()  # what lies in the package's folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """One port of an InfiniBand or RoCE adapter."""

    name: str  # "mlx5_0:1"
    active: bool
    rate: str  # "400 Gb/sec (4X NDR)"
    layer: str  # InfiniBand or Ethernet


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    environment: Mapping[str, str] = field(default_factory=dict)
    driver: Driver | str  # or why there is none
    torch: Torch
    # of what is installed: normalised name -> version
    distributions: Mapping[str, str] = field(default_factory=dict)
    torch_requires: tuple[str, ...] = ()  # requirements of the torch distribution
    imports: Mapping[str, Import] = field(default_factory=dict)  # of packages that were found
    ports: tuple[Port, ...] = ()
    interfaces: tuple[str, ...] = ()  # of the network
    shm_free: int | None = None  # bytes of /dev/shm
    open_files: int = 1024  # soft limit
    memory_limit: int | None = None  # bytes, of the container; None: none
    memory_free: int | None = None  # bytes, of the machine
    cpus: frozenset[int] = frozenset({0})  # that this process may run on
    cpu_count: int = 1
    cpu_quota: float | None = None  # CPUs' worth of time, of the container
    numa: tuple[frozenset[int], ...] = ()  # CPUs of each node


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What the trainer's own functions made of the flags; None where they refused."""

    model: Any = None  # on the meta device: shapes without memory
    tokenizer: Any = None
    pack: PackRule | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What a check gets."""

    machine: Machine
    config: TrainConfig
    built: Built = field(default_factory=Built)

    @property
    def asks_for_gpu(self) -> bool:
        return self.config.distributed.device.split(":")[0] == "cuda"

    @property
    def has_gpu(self) -> bool:
        """One that torch can put a tensor on."""
        return any(gpu.problem is None for gpu in self.machine.torch.gpus)

    @property
    def uses_gpu(self) -> bool:
        """The run goes to a GPU, or tries to: `--device cuda` on a machine without one goes to the CPU."""
        return self.asks_for_gpu and (
            bool(self.machine.torch.gpus) or not isinstance(self.machine.driver, str)
        )

    @property
    def local_ranks(self) -> int:
        """Processes of the run on this machine: as the launcher says, else one a GPU."""
        gpus = len(self.machine.torch.gpus) if self.uses_gpu else 1
        return local_size(self.machine.environment, max(1, gpus))
