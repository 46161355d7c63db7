"""What scripts/gpu_check.sh runs, in that order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import headlines

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


class Part(NamedTuple):
    name: str
    words: list[str]  # for Python
    result: str  # its JSON, in --out
    seconds: float  # after so long it is ended
    checks: bool  # whether its exit status says that results are right
    interprets: bool  # with --toy and no GPU, in Triton's interpreter
    headline: Callable[[Any], str]  # of its JSON
    needs: tuple[str, ...] = ()  # modules without which it is missing


def parts(out: Path, seconds: float, *, toy: bool) -> list[Part]:
    """In the order they run."""
    to, small = ["--out", str(out)], ["--toy"] if toy else []
    box = 300 if toy else 900
    timed = 2 * seconds + 300
    model: list[str] = []
    trainers = ["--steps", "64", "--batch-size", "512", "--", "--workers", "4"]
    suite = ["--benchmark-json", str(out / "suite.json"), "-q", "-p", "no:cacheprovider"]
    if toy:
        folder = out / "tiny_model"
        folder.mkdir(exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
        model = ["--model", f"local-dir:{folder}", "--batch-size", "8"]
        trainers = ["--rounds", "1", "--steps", "6", "--warm-up", "2", "--batch-size", "8"]
        trainers += ["--", "--model", f"local-dir:{folder}"]
        trainers += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
        suite += ["--quick"]
    return [
        Part("environment", ["-m", "bench.environment", *to], "environment.json", 120, False, False,
             headlines.environment),
        Part("kernels right", ["-m", "bench.kernels_on_device", *to, *small],
             "kernels_on_device.json", box, True, True, headlines.kernels),
        Part("losses right", ["-m", "bench.loss_on_device", *to, *small, "--only", "right"],
             "loss_correctness.json", box, True, True, headlines.losses),
        Part("tiles of the losses", ["-m", "bench.loss_tiles", *to, *small], "loss_tiles.json",
             box, False, True, headlines.tiles),
        Part("losses beside peers", ["-m", "bench.loss_on_device", *to, *small, "--only", "fast",
                                     "--seconds", str(seconds)],
             "loss_speed.json", timed, False, True, headlines.speed),
        Part("embedding, attention", ["-m", "pytest", "bench/test_patch_embed.py",
                                      "bench/test_attention.py", *suite],
             "suite.json", timed, True, False, headlines.suite, ("pytest", "pytest_benchmark")),
        Part("step", ["-m", "bench.step_on_device", *to, *small, *model, "--seconds", str(seconds)],
             "step_on_device.json", timed, False, False, headlines.step),
        Part("whole trainer", ["-m", "bench.whole_trainer", *to, *trainers], "whole_trainer.json",
             3 * timed, False, False, headlines.trainer),
    ]  # fmt: skip
