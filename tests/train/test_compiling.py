"""Who is compiled, decided at set-up: the flags, the device, and whether a compiler works at all."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.errors import EnvironmentProblem
from fastclip.train import compiling

WORDS = ["--dataset-type", "synthetic", "--train-num-samples", "8", "--model", "ViT-B-32"]


def made_of(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    *words: str,
    problem: str | None = None,
    ours: bool = True,
) -> list[str]:
    """What `set_up_compiling` did to a model."""
    done: list[str] = []
    model: Any = SimpleNamespace(compile=lambda: done.append("whole"))
    if ours:
        model.compile_blocks = lambda sum_biases: done.append(
            "blocks, biases" if sum_biases else "blocks"
        )
    monkeypatch.setattr(compiling, "compiler_problem", lambda device: problem)
    config = resolve(parse_args([*WORDS, *words]))
    compiling.set_up_compiling(model, config, torch.device(device))
    return done


@pytest.mark.parametrize(
    ("device", "words", "ours", "wanted"),
    [
        ("cuda", [], True, ["blocks, biases"]),
        ("cuda", ["--torchcompile"], True, ["blocks, biases"]),
        ("cuda", ["--torchcompile", "--deterministic"], True, ["blocks, biases"]),
        ("cuda", ["--deterministic"], True, []),
        ("cuda", ["--no-fused-pointwise"], True, []),
        ("cuda", [], False, []),
        ("cuda", ["--torchcompile"], False, ["whole"]),
        ("cpu", [], True, []),
        ("cpu", ["--torchcompile"], True, ["blocks"]),
    ],
)
def test_what_is_compiled(
    device: str, words: list[str], ours: bool, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made_of(monkeypatch, device, *words, ours=ours) == wanted


def test_without_a_compiler_a_gpu_run_goes_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert made_of(monkeypatch, "cuda", problem="no C compiler") == []
    (record,) = caplog.records
    assert "no C compiler" in record.getMessage()
    assert "--no-fused-pointwise" in record.getMessage()


def test_without_a_compiler_torchcompile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match=r"^--torchcompile: .*no C compiler") as raised:
        made_of(monkeypatch, "cpu", "--torchcompile", problem="no C compiler")
    assert "\n" not in str(raised.value)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any) -> Any:
        raise RuntimeError("no g++ in PATH\nmore\nlines")

    monkeypatch.setattr(torch, "compile", fails)
    found = compiling.compiler_problem(torch.device("cpu"))
    assert found == "RuntimeError: no g++ in PATH"
