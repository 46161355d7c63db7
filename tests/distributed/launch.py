"""Run a function on several gloo ranks, each a real process, and bring back what each returned.

    results = run_ranks(check_everything, world_size=3, args=(seed,))

The function is called as `function(rank, world_size, *args)` with the default process group ready.
It must be importable by name (module level), and its arguments and result must pickle; return plain
numbers or tensors. Put all cases of a test file into one launch per world size: starting processes
costs more than the cases.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# Seconds that importing torch and finding the other ranks may take on a busy machine.
_START_UP = 120.0


class RankFailed(RuntimeError):
    """A rank raised, died or hung; the message holds its traceback."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    args: tuple[Any, ...] = (),
    timeout: float = 120,  # seconds
) -> list[Any]:
    """`function(rank, world_size, *args)` on `world_size` ranks; the results in rank order.

    The first rank that fails ends the others, and its traceback is in RankFailed. A rank that runs
    longer than `timeout` (start-up not counted: it depends on the machine) ends likewise, with the
    place where each rank stood.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks = [
            context.Process(
                target=_run_rank, args=(function, rank, world_size, args, folder, timeout)
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            _wait_for_all(ranks, Path(folder), timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        import torch

        return [
            torch.load(Path(folder, f"{rank}.result"), weights_only=False)
            for rank in range(world_size)
        ]


def _wait_for_all(ranks: list[Any], folder: Path, timeout: float) -> None:
    waiting = {process.sentinel: rank for rank, process in enumerate(ranks)}
    while waiting:
        done = wait(list(waiting), timeout=timeout + _START_UP)
        if not done:
            raise RankFailed(f"ranks {sorted(waiting.values())} neither ran nor ended")
        failed = [waiting[sentinel] for sentinel in done if _exit_code(ranks, waiting[sentinel])]
        if failed:
            raise RankFailed(_why(ranks, failed[0], folder, timeout))
        for sentinel in done:
            del waiting[sentinel]


def _why(ranks: list[Any], failed: int, folder: Path, timeout: float) -> str:
    # a rank that fails makes its peers fail a moment later: report the one that failed first
    tracebacks = {rank: folder / f"{rank}.traceback" for rank in range(len(ranks))}
    written = [rank for rank, path in tracebacks.items() if path.exists()]
    if written:
        first = min(written, key=lambda rank: tracebacks[rank].stat().st_mtime_ns)
        return f"rank {first} of {len(ranks)} failed\n{tracebacks[first].read_text()}"
    if (folder / f"{failed}.stack").read_text():
        time.sleep(1)  # the others' time is up as well; let them write where they stand
        stacks = [(folder / f"{rank}.stack").read_text() for rank in range(len(ranks))]
        return f"rank {failed} of {len(ranks)} still ran after {timeout} s\n" + "\n".join(stacks)
    return f"rank {failed} of {len(ranks)} died with exit code {_exit_code(ranks, failed)}"


def _exit_code(ranks: list[Any], rank: int) -> int:
    ranks[rank].join()
    return int(ranks[rank].exitcode)


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    args: tuple[Any, ...],
    folder: str,
    timeout: float,
) -> None:
    with open(Path(folder, f"{rank}.stack"), "w") as stack:
        try:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
            import torch
            import torch.distributed as dist

            # cores are shared by the ranks; more threads each would only wait for one another
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout + _START_UP),
            )
            faulthandler.dump_traceback_later(timeout, exit=True, file=stack)
            result = function(rank, world_size, *args)
            torch.save(result, Path(folder, f"{rank}.result"))
            # a rank that leaves early breaks the collectives its peers are still in
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            Path(folder, f"{rank}.traceback").write_text(traceback.format_exc())
            raise SystemExit(1) from None
        finally:
            faulthandler.cancel_dump_traceback_later()
