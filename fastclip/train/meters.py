"""Where the time of a step goes on the host, and the running averages of a log line."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple


class Window(NamedTuple):
    """Means over the steps since the last log line, in seconds."""

    data: float  # waiting for the batch
    step: float  # whole step, waiting included


class StepClock:
    """Wall time (monotonic) of data wait and step. It never waits for the device.

    On a GPU the host runs ahead, so single steps mean little; the mean over a window that ends with reading a value
    from the device is right.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=200)
        self.start()

    def start(self) -> None:
        """Begin a new window now; time spent before (evaluation, saving) is not a step's."""
        self._last = self._window_start = time.perf_counter()
        self._data = 0.0
        self._steps = 0

    def data_ready(self) -> None:
        self._data += time.perf_counter() - self._last

    def step_done(self) -> None:
        now = time.perf_counter()
        self._recent.append(now - self._last)
        self._last = now
        self._steps += 1

    def read_window(self) -> Window:
        """The window's means; a new window starts. Call after reading the step's values from the device."""
        now = time.perf_counter()
        steps = max(self._steps, 1)
        window = Window(self._data / steps, (now - self._window_start) / steps)
        self._last = self._window_start = now
        self._data, self._steps = 0.0, 0
        return window

    def median_step(self) -> float:
        """Seconds; over the last 200 steps."""
        return median(self._recent) if self._recent else 0.0


class LossMeter:
    """Last value and mean over the logged steps of an epoch (the reference's `val (avg)`)."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self.last: Mapping[str, float] = {}

    def add(self, losses: Mapping[str, float]) -> None:
        self.last = losses
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def state(self) -> dict[str, Any]:
        """For a run that goes on from here: see `load`."""
        return {"sums": dict(self._sums), "count": self._count}

    def load(self, state: dict[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), int(state["count"])

    def mean(self, name: str) -> float:
        return self._sums[name] / self._count
