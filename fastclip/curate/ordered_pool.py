"""A function over many items in several processes, results in the order of the items, few of them at a time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from fastclip.data.shard_opener import end_programs
from fastclip.data.worker import set_up_worker
from fastclip.errors import EnvironmentProblem

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_SECONDS = 1.0
_AHEAD = 4  # items per process that are under way or wait to be taken


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Generator[Result, None, None]:
    """`function` of each item; `items` is read only as far ahead as keeps the processes busy.

    Raises EnvironmentProblem if a process dies, and what `function` raises. The processes end with the iterator.
    """
    pool = ProcessPoolExecutor(
        processes,
        mp_context=get_context("fork"),
        initializer=_set_up,
        initargs=(os.getpid(),),
    )
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= processes * _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            "a process died, most often because the machine ran out of memory: use fewer --workers"
        ) from error
    finally:
        # Nobody waits for what is still under way; a shard that stalls would hold the command up.
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def _set_up(parent: int) -> None:
    """Run first in every process: it ends with its parent, even one that is killed, and takes its programs along."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        end_programs()
        os._exit(1)

    set_up_worker(0)
    threading.Thread(target=follow, daemon=True).start()
