"""Text log: the reference's format on stderr and in the run's folder; its train line, our fields at its end."""

from __future__ import annotations

import datetime
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

_FORMAT = logging.Formatter(
    "%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S"
)


class _StderrHandler(logging.Handler):
    """Writes around a progress bar where there is one, and plainly elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class RunLogging:
    """Handlers on the root logger for the time of one run.

    Records go to stderr at once and are kept in memory until `open_file`: a run that fails during set-up leaves no
    log folder behind. fastclip's own loggers speak from INFO (DEBUG with --debug) where this rank `speaks`, from
    WARNING where it does not; other libraries' always from WARNING.
    """

    def __init__(self, debug: bool, *, speaks: bool) -> None:
        self._root = logging.getLogger()
        self._early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
        self._handlers: list[logging.Handler] = [_StderrHandler(), self._early]
        for handler in self._handlers:
            handler.setFormatter(_FORMAT)
            self._root.addHandler(handler)
        level = logging.DEBUG if debug else logging.INFO if speaks else logging.WARNING
        logging.getLogger("fastclip").setLevel(level)
        self._showwarning = warnings.showwarning
        warnings.showwarning = _log_warning  # type: ignore[assignment]

    def open_file(self, path: Path) -> None:
        """From here on the log is also appended to `path`, beginning with what was said before."""
        handler = logging.FileHandler(path)
        handler.setFormatter(_FORMAT)
        self._early.setTarget(handler)
        self._early.flush()
        self.stop_keeping()
        self._handlers.append(handler)
        self._root.addHandler(handler)

    def stop_keeping(self) -> None:
        """No file will be opened in this process."""
        self._root.removeHandler(self._early)
        self._early.setTarget(None)
        self._early.buffer.clear()

    def close(self) -> None:
        warnings.showwarning = self._showwarning
        for handler in self._handlers:
            self._root.removeHandler(handler)
            handler.close()


def _log_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    logging.getLogger("fastclip.warnings").warning("%s: %s", category.__name__, message)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainLine:
    """Everything a train log line shows; plain numbers, read from the device once."""

    epoch: int  # 0-based
    step: int  # 0-based within the epoch
    steps_per_epoch: int
    samples_per_step: int  # over all ranks and micro-batches
    samples_per_epoch: int
    world_size: int
    data_time: float  # seconds, mean over the window
    batch_time: float
    lr: float
    logit_scale: float
    losses: Mapping[str, float]
    mean_losses: Mapping[str, float]
    # ours
    grad_norm: float
    eta: float  # seconds
    mfu: float | None = None  # 0..1; None where the chip's peak is not known
    skipped_updates: int = 0
    bad_samples: int = 0

    @property
    def samples_per_second(self) -> float:
        return self.samples_per_step / self.batch_time

    @property
    def wait_share(self) -> float:
        """Part of the step that was spent waiting for data, 0..1."""
        return self.data_time / self.batch_time

    def text(self) -> str:
        """Up to the losses this is the reference's line, byte for byte; scripts parse it."""
        done = self.step + 1
        digits = math.ceil(math.log(self.samples_per_epoch + 1, 10))
        losses = " ".join(
            f"{name.capitalize()}: {value:#.5g} ({self.mean_losses[name]:#.5g})"
            for name, value in self.losses.items()
        )
        own = [
            f"Wait: {100 * self.wait_share:.1f}%",
            f"Grad Norm: {self.grad_norm:.4g}",
            f"ETA: {datetime.timedelta(seconds=round(self.eta))}",
        ]
        if self.mfu is not None:
            own.append(f"MFU: {100 * self.mfu:.1f}%")
        if self.skipped_updates:
            own.append(f"Skipped Updates: {self.skipped_updates}")
        if self.bad_samples:
            own.append(f"Bad Samples: {self.bad_samples}")
        return (
            f"Train Epoch: {self.epoch} [{done * self.samples_per_step:>{digits}}/{self.samples_per_epoch} "
            f"({100 * done / self.steps_per_epoch:.0f}%)] "
            f"Data (t): {self.data_time:.3f} "
            f"Batch (t): {self.batch_time:.3f}, {self.samples_per_second:#g}/s, "
            f"{self.samples_per_second / self.world_size:#g}/s/gpu "
            f"LR: {self.lr:5f} "
            f"Logit Scale: {self.logit_scale:.3f} {losses} {' '.join(own)}"
        )

    def scalars(self) -> dict[str, float]:
        """TensorBoard and wandb tags: the reference's, then ours."""
        reference = {
            "data_time": self.data_time,
            "batch_time": self.batch_time,
            "samples_per_second": self.samples_per_second,
            "samples_per_second_per_gpu": self.samples_per_second / self.world_size,
            "scale": self.logit_scale,
            "lr": self.lr,
            **self.losses,
        }
        return {
            **{f"train/{name}": value for name, value in reference.items()},
            "perf/wait_share": self.wait_share,
            "perf/eta_seconds": self.eta,
            **({} if self.mfu is None else {"perf/mfu": self.mfu}),
            "health/grad_norm": self.grad_norm,
            "health/skipped_updates": self.skipped_updates,
            "health/bad_samples": self.bad_samples,
        }
