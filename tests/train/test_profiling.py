"""Once its steps are over a profile leaves the run as it would have been without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fastclip.train.profiling import PROFILER_WARM_UP, WARM_UP, ProfiledSteps


class Model:
    def encode_image(self) -> str:
        return "image"

    def encode_text(self) -> str:
        return "text"


def test_after_the_profile_steps_are_plain(tmp_path: Path) -> None:
    made: list[str] = []
    model = Model()
    results: dict[str, Any] = {"in parts": SimpleNamespace(), "plain": SimpleNamespace()}

    def step(kind: str) -> Any:
        return lambda batches: made.append(kind) or results[kind]

    profiled = ProfiledSteps(
        step("in parts"),
        step("plain"),
        lambda epoch: iter(range(20)),  # type: ignore[arg-type, return-value]
        model=model,
        steps=2,
        folder=tmp_path / "profile",
        device=torch.device("cpu"),
    )
    last = WARM_UP + PROFILER_WARM_UP + 2
    for count, batch in enumerate(profiled.batches(0), start=1):
        assert batch == count - 1
        assert (model.encode_image(), model.encode_text()) == ("image", "text")
        kind = "in parts" if count <= last else "plain"
        assert profiled([batch]) is results[kind]
        assert ("encode_image" in vars(model)) == (count < last)
    assert made == ["in parts"] * last + ["plain"] * (20 - last)
    assert (tmp_path / "profile" / "trace.json").is_file()
