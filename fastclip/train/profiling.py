"""`--profile N`: N steps under torch's profiler, then the run goes on with its plain step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from fastclip.data.batch import Batch
from fastclip.optim.update import Update
from fastclip.train.profile_parts import Part, part, summarise
from fastclip.train.step import Step, StepResult

logger = logging.getLogger(__name__)

# Steps before the first that counts: compilation, searches and allocation, then the profiler's own start.
WARM_UP, PROFILER_WARM_UP = 3, 2

Batches = Callable[[int], Iterator[Batch]]


def steps_to_profile(wanted: int, steps_of_run: int) -> int:
    """As many of `wanted` as the run has after its warm-up; fewer are said in the log."""
    possible = max(0, min(wanted, steps_of_run - WARM_UP - PROFILER_WARM_UP))
    if possible < wanted:
        logger.warning(
            "--profile %d: this run has %d steps, and the first %d are warm-up: %s",
            wanted,
            steps_of_run,
            WARM_UP + PROFILER_WARM_UP,
            f"{possible} are profiled" if possible else "none is profiled",
        )
    return possible


class InPart:
    """`function`, counted to a part."""

    def __init__(self, name: Part, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with part(self._name):
            return self._function(*args, **kwargs)


class UpdateInParts:
    """An Update as a step sees it. From the scaled loss to the update a step does nothing but go backward."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._backward: AbstractContextManager[None] = part("backward")

    def zero_grad(self) -> None:
        self._update.zero_grad()

    def scale(self, loss: Tensor) -> Tensor:
        self._backward = part("backward")
        self._backward.__enter__()
        return self._update.scale(loss)

    def apply(self) -> None:
        self._backward.__exit__(None, None, None)
        with part("optimizer"):
            self._update.apply()


class ProfiledSteps:
    """Steps and batches of a run: in parts until `steps` of them are profiled, then plain."""

    def __init__(
        self,
        in_parts: Step,
        plain: Step,
        batches: Batches,
        *,
        model: Any,  # bare; its towers are counted as parts while the profile lasts
        steps: int,
        folder: Path,
        device: torch.device,
    ) -> None:
        self._step, self._plain, self._batches = in_parts, plain, batches
        self._model, self._folder, self._on_gpu = model, folder, device.type == "cuda"
        self._left = WARM_UP + PROFILER_WARM_UP + steps
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=WARM_UP, warmup=PROFILER_WARM_UP, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        for tower, name in _TOWERS.items():
            setattr(model, tower, InPart(name, getattr(model, tower)))
        self._profile.start()

    def batches(self, epoch: int) -> Iterator[Batch]:
        batches = self._batches(epoch)
        while self._left:
            with part("data wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
        yield from batches

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        result = self._step(batches)
        if self._left:
            self._profile.step()
            self._left -= 1
            if not self._left:
                self._finish()
        return result

    def _finish(self) -> None:
        self._profile.stop()
        for tower in _TOWERS:
            delattr(self._model, tower)
        self._step = self._plain

    def _write(self, finished: profile) -> None:
        """Called by the profiler once all its steps are over."""
        found = summarise(finished.events(), on_gpu=self._on_gpu)
        logger.info("profile of %d steps:\n%s", found.steps, found.table())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self._folder / "trace.json"))
            (self._folder / "parts.json").write_text(found.as_json())
        except (OSError, RuntimeError) as error:
            logger.warning("the profile cannot be written: %s", error)
            return
        logger.info(
            "profile written: %s (open trace.json in https://ui.perfetto.dev)", self._folder
        )


_TOWERS: dict[str, Part] = {"encode_image": "image tower", "encode_text": "text tower"}
