"""Being told to stop: SIGTERM, and SIGUSR1, with which SLURM can warn of a time limit.

Before training such a signal ends the process at once; then there is nothing to save. In training it is only noted:
the step under way is finished and the run's state saved, by all ranks after the same step.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from fastclip.errors import ExitCode
from fastclip.train.distributed import World

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Listens while it is entered. Further signals change nothing: launchers pass one on that came to all."""

    def __init__(self) -> None:
        self.requested = False
        self._training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signals are no other's
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def training_begins(self) -> None:
        """From here on a signal is only noted."""
        self._training = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            os.write(2, b"fastclip: told to stop before the first step: nothing to save\n")
            os._exit(ExitCode.PREEMPTED)
        self.requested = True


class Agreement:
    """The largest of all ranks' numbers, without waiting for a rank that is behind: what they said a call ago."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, value: int) -> int:
        if not self._world.distributed:
            return value
        agreed = self._take()
        tensor = torch.tensor(value)
        work = dist.all_reduce(
            tensor, dist.ReduceOp.MAX, group=self._world.patient_group, async_op=True
        )
        self._pending = work, tensor
        return agreed

    def forget(self) -> None:
        """Leave out what was said in the last call."""
        self._take()

    def _take(self) -> int:
        if self._pending is None:
            return 0
        work, tensor = self._pending
        self._pending = None
        work.wait()
        return int(tensor)
