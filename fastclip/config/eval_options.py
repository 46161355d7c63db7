"""What `fastclip eval` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fastclip.config.train_config import Precision
from fastclip.errors import UserError

Task = Literal["zeroshot", "retrieval", "linear-probe"]
SUITES = ("datacomp",)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """Flags of the command, by their names. Checked against each other, not against the machine."""

    model: str | None = None
    checkpoint: str | None = None
    force_quick_gelu: bool = False
    unsafe_load: bool = False

    task: Task | None = None
    data: str | None = None
    split: str = "test"
    train_data: str | None = None
    train_split: str = "train"
    classnames: str | None = None
    templates: str | None = None
    annotations: str | None = None
    csv_separator: str = "\t"
    csv_img_key: str = "filepath"
    csv_caption_key: str = "title"

    suite: str | None = None
    data_root: str | None = None

    out: str | None = None
    batch_size: int = 64
    workers: int | None = None
    precision: Precision | None = None
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.suite is None:
            self._check_single()
        elif self.suite not in SUITES:
            raise UserError(f"--suite {self.suite!r}: choose {', '.join(SUITES)}")
        elif self.task is not None or self.data is not None:
            raise UserError("--suite has its own tasks and data: leave out --task and --data")
        elif self.data_root is None:
            raise UserError("--suite needs --data-root: the folder with its data sets")
        if self.model is None and self.checkpoint is None:
            raise UserError("--model and --checkpoint say what to evaluate; both are missing")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers {self.workers}: must be at least 0")
        if self.precision is not None and self.precision not in get_args(Precision):
            raise UserError(
                f"--precision {self.precision!r}: choose {', '.join(get_args(Precision))}"
            )

    def _check_single(self) -> None:
        if self.task is None:
            raise UserError(
                f"--task is missing: {', '.join(get_args(Task))}; or --suite {SUITES[0]}"
            )
        if self.task not in get_args(Task):
            raise UserError(f"--task {self.task!r}: choose {', '.join(get_args(Task))}")
        if self.data is None:
            raise UserError("--data is missing: the folder or csv file to evaluate on")
        if self.data_root is not None:
            raise UserError("--data-root goes with --suite; one data set is given by --data")
        if self.annotations is not None and self.task != "retrieval":
            raise UserError(f"--annotations has captions, which --task {self.task} does not use")
