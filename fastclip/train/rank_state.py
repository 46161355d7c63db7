"""What a rank adds to a checkpoint so that a run goes on inside an epoch as if it had never ended."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclip.data.loader import TrainLoader
from fastclip.data.position import DataPosition, LoaderPosition
from fastclip.errors import DataError
from fastclip.optim.update import Update
from fastclip.train.distributed import World
from fastclip.train.report import Report
from fastclip.train.resume_folder import RANKS, open_save, read_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class RankState:
    """One rank's, in plain values and tensors."""

    position: LoaderPosition
    counts: dict[str, Any]  # the loader's
    generators: dict[str, Any]
    update: dict[str, float]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """Where another run left an epoch."""

    data: DataPosition
    state: RankState | None  # None: that run had no such rank


def generator_states(device: torch.device) -> dict[str, Any]:
    """Of every generator that `seed_everything` seeds."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "random": [version, list(internal), gauss],
    }


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["device"] is not None:
        torch.cuda.set_rng_state(states["device"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["random"]
    random.setstate((version, tuple(internal), gauss))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stateful:
    """The objects of a rank that a RankState is taken from and put back into."""

    loader: TrainLoader
    update: Update
    report: Report
    device: torch.device

    def state(self) -> RankState:
        """Waits for the device."""
        return RankState(
            position=self.loader.position,
            counts=self.loader.counts(),
            generators=generator_states(self.device),
            update=self.update.counters(),
            report=self.report.state(),
        )

    def restore(self, state: RankState) -> None:
        self.loader.load_counts(state.counts)
        restore_generators(state.generators, self.device)
        self.update.load_counters(state.update)
        self.report.load(state.report)


def gathered(stateful: Stateful, world: World) -> dict[str, Any]:
    """All ranks' states, as `ranks.pt` holds them. A collective call."""
    states = world.from_all(stateful.state())
    positions = [state.position for state in states]
    return {
        "data": stateful.loader.position_of_run(positions).as_plain(),
        "ranks": [{**asdict(state), "position": None} for state in states],
    }


def read_left(folder: Path, world: World) -> Left:
    """Raises DataError where the save is damaged or of another version."""
    plain = read_ranks(open_save(folder))
    try:
        data = DataPosition.from_plain(plain["data"])
        states = plain["ranks"]
        if len(states) != len(data.ranks):
            raise ValueError(f"{len(states)} states of {len(data.ranks)} ranks")
        state = None
        if len(states) == world.size:
            state = RankState(**{**states[world.rank], "position": data.ranks[world.rank]})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{folder / RANKS}: cannot be understood: {error}") from error
    return Left(data=data, state=state)
