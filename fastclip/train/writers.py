"""Where scalars go: TensorBoard, wandb, both or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fastclip.config.train_config import LogConfig
from fastclip.optional import require


class ScalarWriter(Protocol):
    def train(self, scalars: Mapping[str, float], step: int) -> None: ...

    def evaluation(self, metrics: Mapping[str, float], epoch: int, step: int) -> None: ...

    def flush(self) -> None:
        """What was written so far outlives a kill."""
        ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """`first_step` is where a resumed run begins: what another wrote of later steps is hidden."""

    def __init__(self, folder: Path, first_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def train(self, scalars: Mapping[str, float], step: int) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def evaluation(self, metrics: Mapping[str, float], epoch: int, step: int) -> None:
        """x is the number of completed epochs, as in the reference."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"val/{name}", value, epoch)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Same call and ids as the reference, so that a run goes on in its own page."""

    def __init__(
        self, config: LogConfig, name: str, settings: Mapping[str, object], resumed: bool
    ) -> None:
        wandb: Any = require("wandb", "--report-to wandb", "pip install 'fastclip[wandb]'")
        self._run = wandb.init(
            project=config.wandb_project_name,
            name=name,
            id=name,
            notes=config.wandb_notes,
            tags=[],
            resume="allow" if resumed else None,
            config=dict(settings),
        )

    def save(self, file: Path) -> None:
        self._run.save(str(file), policy="now")

    def train(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step}, step=step)

    def evaluation(self, metrics: Mapping[str, float], epoch: int, step: int) -> None:
        values = {f"val/{name}": value for name, value in metrics.items()}
        self._run.log({**values, "epoch": epoch}, step=step)

    def flush(self) -> None:
        """wandb's own process has it already."""

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Every writer of this rank; none on ranks other than the first."""

    def __init__(self, writers: list[ScalarWriter]) -> None:
        self._writers = writers

    def train(self, scalars: Mapping[str, float], step: int) -> None:
        for writer in self._writers:
            writer.train(scalars, step)

    def evaluation(self, metrics: Mapping[str, float], epoch: int, step: int) -> None:
        for writer in self._writers:
            writer.evaluation(metrics, epoch, step)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
