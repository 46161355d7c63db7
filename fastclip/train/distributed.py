"""Who am I among how many, on which device; and the few things that all ranks must agree on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastclip.config.train_config import DistributedConfig
from fastclip.errors import EnvironmentProblem, FastclipError, RanksDisagree, UserError
from fastclip.train.launcher_watch import end_with_launcher

T = TypeVar("T")

# Launchers' names for the same three numbers, in the reference's order: torchrun, MPI, SLURM, Open MPI.
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
_RANK = ("RANK", "PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_BACKENDS = {"cuda": "nccl", "hpu": "hccl", "npu": "hccl", "xpu": "ccl"}

# Ranks that wait for rank 0 to evaluate or to save do it on a gloo group of their own with this limit, so that a
# long evaluation is not taken for a hang.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """One process among `size`; `distributed` is False for a plain single process."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient_group: dist.ProcessGroup | None = None

    @property
    def distributed(self) -> bool:
        return self.size > 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, value: T) -> T:
        """Rank 0's `value`, on every rank. Waits as long as rank 0 needs."""
        if not self.distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient_group)
        return box[0]

    def agree_that_all_succeeded(self, failure: FastclipError | None) -> None:
        """Raise this rank's own failure, or say which other rank failed and why; return where nobody did.

        Before ranks enter collectives that would otherwise wait for one that is gone.
        """
        if not self.distributed:
            if failure is not None:
                raise failure
            return
        failures: list[str | None] = [None] * self.size
        mine = None if failure is None else str(failure)
        dist.all_gather_object(failures, mine, group=self.patient_group)
        if failure is not None:
            raise failure
        first = next((r for r, text in enumerate(failures) if text is not None), None)
        if first is not None:
            raise RanksDisagree(
                f"rank {self.rank} stops because rank {first} failed: {failures[first]}"
            )

    def from_all(self, value: T) -> list[T]:
        """Every rank's `value`, on every rank."""
        values = [value] * self.size
        if self.distributed:
            dist.all_gather_object(values, value, group=self.patient_group)
        return values

    def largest(self, value: int) -> int:
        """The largest `value` of any rank, on every rank."""
        return max(self.from_all(value))

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        if self.distributed:
            dist.barrier(group=self.patient_group)


def agree_on_steps(batches: int, world: World) -> None:
    """Every rank must make as many steps, or the first to end would leave the others waiting."""
    counts = world.from_all(batches)
    for rank, count in enumerate(counts):
        if count != counts[0]:
            raise RanksDisagree(
                f"an epoch has {counts[0]:,} batches on rank 0 and {count:,} on rank {rank}: all ranks need the same "
                "flags, and the same --train-data with the same sizes.json"
            )


def _first_of(names: tuple[str, ...], environment: Mapping[str, str], default: int) -> int:
    for name in names:
        if name in environment:
            try:
                return int(environment[name])
            except ValueError:
                raise UserError(
                    f"environment variable {name}={environment[name]!r}: must be a whole number"
                ) from None
    return default


def local_size(environment: Mapping[str, str], default: int) -> int:
    """Processes on this machine, as the launcher says; `default` where none does."""
    return _first_of(_LOCAL_SIZE, environment, default)


def world_size(environment: Mapping[str, str], default: int) -> int:
    """Processes of the run, as the launcher says; `default` where none does."""
    return _first_of(_WORLD_SIZE, environment, default)


def is_distributed(environment: Mapping[str, str]) -> bool:
    """More than one process, by WORLD_SIZE, else by SLURM_NTASKS (the reference's rule)."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if name in environment:
            return _first_of((name,), environment, 1) > 1
    return False


def usable_device_type(device: str) -> str:
    """`device` without its index; "cpu" (with a warning, as the reference) where the machine has no such device."""
    kind = device.split(":", maxsplit=1)[0]
    checks: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }
    available = checks.get(kind)
    if available is None:
        try:
            torch.device(kind)
        except RuntimeError as error:
            raise UserError(f"--device {device!r}: not a device type of this torch") from error
        warnings.warn(
            f"Device {device} cannot be checked for availability, trying anyway.", stacklevel=2
        )
        return kind
    if not available():
        warnings.warn(f"Device {device} is not available, falling back to CPU.", stacklevel=2)
        return "cpu"
    return kind


def init_world(config: DistributedConfig) -> World:
    """Join the process group that the launcher's environment describes, and pick this process's device.

    Raises UserError for more processes on this machine than it has GPUs, EnvironmentProblem where the group cannot
    be formed.
    """
    environment = os.environ
    kind = usable_device_type(config.device)
    name = config.device if kind == config.device.split(":", maxsplit=1)[0] else kind
    if not is_distributed(environment):
        _check_gpu_index(torch.device(name), config.device)
        return World(device=torch.device(name))

    end_with_launcher()
    local_rank = _first_of(_LOCAL_RANK, environment, 0)
    rank = _first_of(_RANK, environment, 0)
    size = world_size(environment, 1)
    if kind not in ("cpu", "mps") and not config.no_set_device_rank:
        if ":" in config.device:
            warnings.warn(
                f"--device {config.device}: the index is dropped, each process takes the GPU of its local rank",
                stacklevel=2,
            )
        name = f"{kind}:{local_rank}"
        _check_gpu_index(torch.device(name), f"local rank {local_rank}")
        torch.accelerator.set_device_index(local_rank)
    device = torch.device(name)
    # torch reads these by torchrun's names only.
    environment.update(LOCAL_RANK=str(local_rank), RANK=str(rank), WORLD_SIZE=str(size))
    backend = config.dist_backend or _BACKENDS.get(kind, "gloo")
    url = config.dist_url or "env://"
    try:
        dist.init_process_group(
            backend=backend,
            init_method=url,
            rank=rank,
            world_size=size,
            device_id=device if backend == "nccl" and device.index is not None else None,
        )
        patient: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        where = ", ".join(
            f"{v}={environment.get(v, '(unset)')}" for v in ("MASTER_ADDR", "MASTER_PORT")
        )
        raise EnvironmentProblem(
            f"rank {rank} of {size} could not join the process group ({backend}, {url}, {where}): {error}"
        ) from error
    return World(
        rank=rank,
        local_rank=local_rank,
        size=size,
        local_size=local_size(environment, size),
        device=device,
        patient_group=patient,
    )


def _check_gpu_index(device: torch.device, wanted_by: str) -> None:
    if device.type != "cuda" or device.index is None:
        return
    present = torch.cuda.device_count()
    if device.index >= present:
        remedy = (
            "add --no-set-device-rank if the launcher binds one GPU to each process (srun --gpus-per-task=1), else "
            if present == 1
            else ""
        )
        raise UserError(
            f"{wanted_by} needs GPU {device.index}, this machine has {present}: "
            f"{remedy}start at most one process per GPU"
        )


def leave(world: World, *, failed: bool) -> None:
    """Leave the process group: properly at the end of a run; at once after a failure.

    An orderly end waits for collectives that other ranks may never join, and so would hide the error that is still
    to be printed.
    """
    if world.distributed and dist.is_initialized() and not failed:
        dist.destroy_process_group()
