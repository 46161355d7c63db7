"""LOGS/NAME: its name, what lies where, and who may create it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fastclip.config.train_config import TrainConfig
from fastclip.errors import CannotWrite, UserError
from fastclip.train.distributed import World
from fastclip.train.run_lock import RunLock


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run. Nothing is created before `create`."""

    logs: Path
    name: str
    log_file: Path | None  # None: this rank writes no log
    lock: RunLock

    @property
    def path(self) -> Path:
        return self.logs / self.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def resume(self) -> Path:
        return self.path / "resume"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def params_file(self) -> Path:
        return self.path / "params.txt"

    @property
    def exit_file(self) -> Path:
        return self.path / "exit.json"

    def create(self, *, tensorboard: bool) -> None:
        """Raises CannotWrite where the folder cannot be made or written to."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                self.tensorboard.mkdir(exist_ok=True)
            self.exit_file.unlink(missing_ok=True)  # of the run before
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "no permission to write", str(self.path))
        except OSError as error:
            raise CannotWrite(
                f"--logs {self.logs}: cannot make {error.filename}: {error.strerror}; "
                "choose a folder that can be written"
            ) from error

    def write_exit(self, code: int, message: str) -> None:
        """Leave the exit status in exit.json, because torchrun turns every code into 1.

        The first rank that fails writes it: what its peers then meet is the consequence, not the cause. A run that
        never made its folder leaves nothing.
        """
        if not self.path.is_dir() or self.exit_file.exists():
            return
        record = {"code": code, "message": message, "time": datetime.now().astimezone().isoformat()}
        temporary = self.path / f"exit.json.{os.getpid()}.partial"
        try:
            temporary.write_text(json.dumps(record) + "\n")
            temporary.replace(self.exit_file)
        except OSError:
            # The status of the process says the same; a full disk must not hide the first error.
            return


def run_name(config: TrainConfig, world: World) -> str:
    """`--name`, or the reference's: date of rank 0, model, lr, batch size, workers, precision."""
    if config.log.name is not None:
        return config.log.name
    date = world.from_first(datetime.now().strftime("%Y_%m_%d-%H_%M_%S"))
    return "-".join(
        [
            date,
            f"model_{config.model.name.replace('/', '-')}",
            f"lr_{config.optim.lr}",
            f"b_{config.data.batch_size}",
            f"j_{config.data.workers}",
            f"p_{config.precision}",
        ]
    )


def choose_folder(config: TrainConfig, world: World) -> RunFolder:
    """The run's folder; refuses one that holds a log already, on every rank at once, unless resuming `latest`."""
    name = run_name(config, world)
    logs = Path(config.log.logs)
    writes = world.local_rank == 0 if config.log.log_local else world.is_first
    file_name = f"out-{world.rank}" if config.log.log_local else "out.log"
    log_file = logs / name / file_name if writes and config.log.enabled else None
    taken = log_file is not None and log_file.exists() and config.checkpoint.resume != "latest"
    if world.from_first(taken):
        raise UserError(
            f"{logs / name}: experiment already exists. Use --name to give another name, "
            "or --resume latest to go on with it"
        )
    return RunFolder(logs, name, log_file, RunLock(log_file))
