"""The loader processes: torch's DataLoader, with the death of one of them told as what it is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from fastclip.data.worker import BatchStream, Parcel, identity, set_up_worker
from fastclip.errors import EnvironmentProblem


class LoaderProcesses:
    """`workers` processes that make the parcels of `stream`; with 0, whoever iterates makes them.

    torch would have a death raised by a signal handler, wherever the main thread is by then: in a collective, in the
    writing of another error. Here the iterator tells it, within seconds, and where it cannot, `check` does.
    """

    def __init__(self, stream: BatchStream, workers: int, *, persistent: bool) -> None:
        self._loader: DataLoader[Parcel] = DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            collate_fn=identity,
            worker_init_fn=set_up_worker,
            persistent_workers=persistent and workers > 0,
            generator=torch.Generator(),  # its own: the global one belongs to the model
        )
        self._processes: set[BaseProcess] = set()
        self._parcels: Iterator[Parcel] | None = None

    def parcels(self) -> Iterator[Parcel]:
        """Those of the next epoch. Call it in the main thread: processes are forked from there.

        Raises EnvironmentProblem, as its iteration does.
        """
        others, handler = set(active_children()), signal.getsignal(signal.SIGCHLD)
        try:
            with _death_told():
                self._parcels = iter(self._loader)
        finally:
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)
        self._processes |= set(active_children()) - others
        return _guarded(self._parcels)

    def check(self) -> None:
        """Raise EnvironmentProblem if a process has died.

        For a thread that waits for another one's iteration, which may wait for ever for the rest of what a process
        has half sent.
        """
        for process in self._processes:
            if process.exitcode:  # 0 and None: it is done, or at work
                raise _died(f"process {process.pid} ended with status {process.exitcode}")

    def end(self) -> None:
        """End the processes.

        By itself torch's iterator ends them when its last reference goes, which an error's traceback may hold for long.
        """
        shut_down = getattr(self._parcels, "_shutdown_workers", None)  # None: there are none
        if shut_down is not None:
            shut_down()
        self._parcels = None


def _guarded(parcels: Iterator[Parcel]) -> Iterator[Parcel]:
    with _death_told():
        yield from parcels


@contextlib.contextmanager
def _death_told() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, EOFError) as error:
        if "in DataLoader worker process" in str(error):
            raise  # an error of that process, which torch passes on
        raise _died("it went while it handed a batch over") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "in DataLoader worker process" in str(error):
            raise
        raise _died(str(error)) from error


def _died(how: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"a loader process died: {how}; most often the machine ran out of memory or of shared memory (/dev/shm): "
        "use fewer --workers"
    )
