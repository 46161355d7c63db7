"""What a check found in all shards together, and what a training run will make of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastclip.curate.scan import MAX_TOKENS, SAMPLE, ShardScan
from fastclip.data.bad_samples import DROPS_NOTHING, LINES_PER_CAUSE, BadEvent
from fastclip.data.epoch_plan import check_enough_shards, plan_shards
from fastclip.data.shard_spec import shard_name
from fastclip.errors import UserError

CONTEXT = 77
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class RunShape:
    """The run that the samples are counted out for."""

    batch_size: int  # per process
    world_size: int
    workers: int  # per process


@dataclass(slots=True)
class Findings:
    """Filled shard by shard, in the order of the shards."""

    decoded: bool
    sizes: dict[str, int] = field(default_factory=dict)  # usable samples by address of the shard
    formats: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[BadEvent]] = field(default_factory=dict)  # a few of each cause
    _samples: list[np.ndarray] = field(default_factory=list)

    def add(self, scan: ShardScan) -> None:
        self.sizes[scan.url] = self.sizes.get(scan.url, 0) + len(scan.samples)
        self.formats.update(scan.formats)
        self._samples.append(scan.samples)
        for event in scan.events:
            self.causes[event.cause] += 1
            known = self.examples.setdefault(event.cause, [])
            if len(known) < LINES_PER_CAUSE:
                known.append(event)

    @property
    def samples(self) -> np.ndarray:
        """(n,) of SAMPLE."""
        return np.concatenate(self._samples) if self._samples else np.empty(0, SAMPLE)

    @property
    def usable(self) -> int:
        return sum(self.sizes.values())

    @property
    def dropped(self) -> int:
        return sum(count for cause, count in self.causes.items() if cause not in DROPS_NOTHING)

    @property
    def bad_fraction(self) -> float:
        return self.dropped / max(1, self.usable + self.dropped)

    def as_json(self, run: RunShape) -> dict[str, Any]:
        """Everything but the list of bad members. Lengths in pixels, bytes and tokens."""
        samples = self.samples
        shorter = np.minimum(samples["width"], samples["height"])
        return {
            "shards": len(self.sizes),
            "samples": self.usable,
            "dropped": self.dropped,
            "bad_fraction": self.bad_fraction,
            "pictures_decoded": self.decoded,
            "causes": dict(self.causes.most_common()),
            "formats": dict(self.formats.most_common()),
            "quantiles": list(QUANTILES),
            "width": _quantiles(samples["width"]),
            "height": _quantiles(samples["height"]),
            "shorter_edge": _quantiles(shorter),
            "picture_bytes": _quantiles(samples["bytes"]),
            "caption_tokens": _quantiles(samples["tokens"]),
            "captions_cut_at_77_tokens": int((samples["tokens"] > CONTEXT).sum()),
            "tokens_counted_up_to": MAX_TOKENS,
            "duplicates": {
                name: len(samples) - len(np.unique(samples[name]))
                for name in ("picture", "caption", "key")
            },
            "training": self._training(run),
            "samples_by_shard": {shard_name(url): count for url, count in self.sizes.items()},
        }

    def _training(self, run: RunShape) -> dict[str, Any]:
        plan = plan_shards(self.usable, run.batch_size, run.world_size, run.workers)
        try:
            check_enough_shards(len(self.sizes), run.workers, run.world_size)
            problem = None
        except UserError as error:
            problem = str(error)
        return {
            "batch_size": run.batch_size,
            "world_size": run.world_size,
            "workers": run.workers,
            "steps_per_epoch": plan.num_batches,
            "samples_per_epoch": plan.num_samples,
            "refused": problem,
        }


def _quantiles(values: np.ndarray) -> list[int]:
    if not len(values):
        return []
    return [int(v) for v in np.quantile(values, QUANTILES, method="nearest")]
