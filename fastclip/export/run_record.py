"""What a training run left behind about itself: params.txt, out.log, results.jsonl."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastclip.errors import InputMissing

_TRAIN_LINE = re.compile(
    r"Train Epoch: (\d+) \[ *(\d+)/(\d+) .*Batch \(t\): [^,]+, ([\d.e+]+)/s, .* Loss: ([\d.einfa]+)"
)
_SOFTWARE = re.compile(r"INFO \| (Software: .*)")
# flags of `fastclip train` that say what model was trained
_MODEL_FLAGS = (
    "model",
    "tokenizer",
    "force_image_size",
    "force_context_length",
    "force_quick_gelu",
    "force_custom_text",
    "image_mean",
    "image_std",
    "image_interpolation",
    "image_resize_mode",
)
_TEXTS = ("model", "tokenizer")  # may hold blanks and brackets


class LoggedStep(NamedTuple):
    """A train line of out.log."""

    epoch: int  # 0-based
    samples: int  # of this epoch, so far
    samples_per_epoch: int
    rate: float  # samples/s, all devices together
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What the files say, all of it; None, or nothing, where they do not."""

    flags: Mapping[str, str]  # by name, as written to params.txt
    software: str | None  # versions and hardware, one line
    steps: Sequence[LoggedStep]
    results: Sequence[Mapping[str, float]]  # of each evaluation

    @property
    def samples_per_second(self) -> float | None:
        """Median; the first line holds the start of the loaders."""
        rates = [step.rate for step in self.steps]
        return statistics.median(rates[1:] or rates) if rates else None

    def results_after(self, epoch: int | None) -> Mapping[str, float]:
        """Of the last evaluation of that many completed epochs; None: of the last of all."""
        fitting = [r for r in self.results if epoch is None or r.get("epoch") == epoch]
        return fitting[-1] if fitting else {}

    def last_step_of(self, epoch: int | None) -> LoggedStep | None:
        """The last that was logged within the first `epoch` epochs; None: of all."""
        fitting = [step for step in self.steps if epoch is None or step.epoch < epoch]
        return fitting[-1] if fitting else None


def read_run(folder: Path) -> RunRecord:
    """The run in LOGS/NAME. InputMissing where that is no run; an unreadable line counts as absent."""
    params = folder / "params.txt"
    if not params.is_file():
        raise InputMissing(f"--run {folder}: no params.txt there; give LOGS/NAME of a run")
    pairs = (line.partition(": ") for line in _lines(params))
    log = _lines(folder / "out.log")
    steps = [found for line in log if (found := _TRAIN_LINE.search(line))]
    software = [found[1] for line in log if (found := _SOFTWARE.search(line))]
    return RunRecord(
        flags={name: value for name, separator, value in pairs if separator},
        software=software[-1] if software else None,
        steps=[
            LoggedStep(int(s[1]), int(s[2]), int(s[3]), float(s[4]), float(s[5])) for s in steps
        ],
        results=_numbers_of(_lines(folder / "checkpoints/results.jsonl")),
    )


def model_words(record: RunRecord) -> list[str]:
    """The command line of the run as far as it says what the model is."""
    words = []
    for name in _MODEL_FLAGS:
        value = record.flags.get(name, "None")
        if value in ("None", "False", ""):
            continue
        values = [] if value == "True" else value.strip("()[]").replace(",", " ").split()
        words += [f"--{name.replace('_', '-')}", *([value] if name in _TEXTS else values)]
    return words


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputMissing(f"{path}: cannot be read: {error.strerror or error}") from error


def _numbers_of(lines: list[str]) -> list[dict[str, float]]:
    results = []
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:  # a killed run may leave half a line
            continue
        if isinstance(found, dict):
            results.append({k: v for k, v in found.items() if isinstance(v, (int, float))})
    return results
