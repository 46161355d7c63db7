"""From gradients to new weights: un-scale, measure, clip, refuse what is not finite, step, clamp.

Nothing here waits for the device: the norm, the verdict "finite" and the counters stay tensors, and torch's fused
AdamW takes the verdict (`found_inf`) and skips the update itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from fastclip.config.train_config import NonFinitePolicy

MAX_LOGIT_SCALE = math.log(100)


class SkipCounts(NamedTuple):
    """Updates refused because a gradient was not finite."""

    total: int
    longest_run: int  # in a row, since the counts were last read


class Update:
    """One optimiser update, the same call for every precision and every `--nonfinite` policy.

    Without a scaler and with a policy other than `ignore`, an update with a non-finite gradient norm leaves weights
    and moments untouched. Under `--precision amp` that is the GradScaler's own job, as in the reference.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        logit_scale: nn.Parameter,
        *,
        clip_norm: float | None,
        scaler: GradScaler | None,
        nonfinite: NonFinitePolicy,
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.grad_norm = torch.zeros((), device=logit_scale.device)
        self._clip_norm = clip_norm
        self._logit_scale = logit_scale
        self._guards = scaler is None and nonfinite != "ignore"
        self._skips_on_device = "fused" in optimizer.defaults and bool(optimizer.defaults["fused"])
        self._skipped, self._run, self._longest_run = (
            torch.zeros((), device=logit_scale.device) for _ in range(3)
        )

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss as it is to be back-propagated."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def apply(self) -> None:
        """Use the gradients that are there, then clamp the logit scale to 0..ln(100)."""
        if self.scaler is not None:
            self._apply_scaled(self.scaler)
        else:
            self._measure_and_clip()
            self._step_if_finite()
        with torch.no_grad():
            self._logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _apply_scaled(self, scaler: GradScaler) -> None:
        scaler.unscale_(self.optimizer)
        self._measure_and_clip()
        scaler.step(self.optimizer)
        scaler.update()

    def _measure_and_clip(self) -> None:
        parameters = list(self._with_gradient())
        self.grad_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm is not None:
            clip_grads_with_norm_(parameters, self._clip_norm, self.grad_norm)

    def _with_gradient(self) -> Iterable[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from (p for p in group["params"] if p.grad is not None)

    def _step_if_finite(self) -> None:
        if not self._guards:
            self.optimizer.step()
            return
        found_inf = (~torch.isfinite(self.grad_norm)).float()
        self._skipped += found_inf
        self._run = (self._run + 1) * found_inf
        self._longest_run = torch.maximum(self._longest_run, self._run)
        if self._skips_on_device:
            # The door that GradScaler uses: torch's fused kernels read this attribute and undo nothing, because
            # they do nothing where it is 1.
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif not found_inf.item():  # timm's and apex's: one wait per step
            self.optimizer.step()

    def counters(self) -> dict[str, float]:
        """For a run that goes on from here: see `load_counters`. Waits for the device."""
        return {name: float(value) for name, value in self._counters().items()}

    def load_counters(self, values: dict[str, float]) -> None:
        for name, counter in self._counters().items():
            counter.fill_(values[name])

    def _counters(self) -> dict[str, Tensor]:
        return {"skipped": self._skipped, "run": self._run, "longest_run": self._longest_run}

    def read_skips(self) -> SkipCounts:
        """Wait for the device, read the counters, and start a new run-length record."""
        counts = SkipCounts(int(self._skipped.item()), int(self._longest_run.item()))
        self._longest_run = self._run.clone()
        return counts
