"""Shared memory, open files and the container's memory: what loader processes run into."""

from __future__ import annotations

from fastclip.data.shards import SHUFFLE_BYTES
from fastclip.doctor.finding import Finding
from fastclip.doctor.machine import Case
from fastclip.errors import ExitCode

_AHEAD = 2  # batches that torch's DataLoader keeps ready for each loader process, by default
_FILES_PER_BATCH = 16  # a shared tensor is an open file; at most so many tensors to a batch
_FILES_OF_A_RANK = 256  # torch, CUDA, sockets, log, shards
# Python, torch and the tokenizer, beside the shuffle buffer: measured at 350 MB
_LOADER_BYTES = 400 << 20
_RANK_BYTES = 4 << 30  # torch, CUDA and what DALI keeps on the host


def check(case: Case) -> list[Finding]:
    if case.config.data.workers == 0 or not case.config.trains:
        return [_memory(case)]
    return [_shared(case), _files(case), _memory(case)]


def _shared(case: Case) -> Finding:
    name, free = "/dev/shm", case.machine.shm_free
    if free is None:
        return Finding(
            name,
            "missing",
            "there is none, and loader processes hand their batches over in it",
            "mount it, or --workers 0",
            ExitCode.ENVIRONMENT,
        )
    need = shared_bytes(case)
    if need is None:
        return Finding(name, "ok", f"{_size(free)} free")
    workers = case.local_ranks * case.config.data.workers
    found = f"{_size(free)} free; {workers} loader processes want up to {_size(need)}"
    if free < need:
        return Finding(
            name,
            "broken",
            found,
            f"docker run --shm-size={_round_up(need)}g (or --ipc=host), or fewer --workers: full, it is a bus error",
            ExitCode.ENVIRONMENT,
        )
    return Finding(name, "ok", found)


def shared_bytes(case: Case) -> int | None:
    """Pixels of the batches under way, of all ranks here; None where the model is not known."""
    model, data = case.built.model, case.config.data
    if model is None:
        return None
    height, width = model.visual.preprocess_cfg.size
    batch = data.batch_size * height * width * 3
    return case.local_ranks * data.workers * (_AHEAD + 1) * batch


def _files(case: Case) -> Finding:
    need = _FILES_OF_A_RANK + case.config.data.workers * (_AHEAD + 1) * _FILES_PER_BATCH
    has = case.machine.open_files
    if has < need:
        return Finding(
            "open files",
            "broken",
            f"{has:,} a process; --workers {case.config.data.workers} may take {need:,}",
            f"ulimit -n {max(4096, need)}",
        )
    return Finding("open files", "ok", f"{has:,} a process")


def _memory(case: Case) -> Finding:
    limit, free = case.machine.memory_limit, case.machine.memory_free
    known = [amount for amount in (limit, free) if amount is not None]
    if not known:
        return Finding("memory", "ok", "no limit found")
    of = "the container's limit" if limit is not None and limit == min(known) else "free"
    loaders = case.config.data.workers * (SHUFFLE_BYTES + _LOADER_BYTES)
    need = case.local_ranks * (_RANK_BYTES + loaders)
    found = f"{_size(min(known))} ({of}); {case.local_ranks} x (rank and loaders) may want {_size(need)}"
    if min(known) < need:
        return Finding(
            "memory",
            "slower" if min(known) > need / 2 else "broken",
            found,
            "fewer --workers, or more memory for the job: the kernel ends what goes beyond",
        )
    return Finding("memory", "ok", found)


def _size(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GiB" if amount >= 1 << 30 else f"{amount / (1 << 20):.0f} MiB"


def _round_up(amount: int) -> int:
    """GiB."""
    return -(-amount // (1 << 30))
