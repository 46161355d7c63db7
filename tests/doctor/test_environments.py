"""Five machines, and what doctor says of them: the verdict, the status, and that nothing else is blamed."""

from __future__ import annotations

import pytest

from fastclip.doctor.examine import examine
from fastclip.doctor.finding import Report
from fastclip.doctor.machine import Machine
from fastclip.train.parts import build_parts
from tests.doctor.environments import (
    BARE,
    CRASHING_FLASH,
    EVERYTHING,
    OTHER_DALI,
    WRONG_APEX,
    act_as_gpu,
    by_name,
    flags,
)
from tests.doctor.schema import problems


@pytest.fixture(autouse=True)
def _no_cache_of_the_tester(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def report(machine: Machine, *words: str) -> Report:
    found = examine(machine, flags(*words))
    assert problems(found.as_json()) == []
    assert not any("\n" in f.found + f.advice for f in found.findings)
    return found


def not_ok(found: Report) -> dict[str, str]:
    return {name: f.verdict for name, f in by_name(found.findings).items() if f.verdict != "ok"}


def test_bare_cpu() -> None:
    """A laptop: a GPU is missed, the trainer goes to the CPU as OpenCLIP's does, so that is no failure."""
    found = report(BARE)
    findings = by_name(found.findings)
    assert findings["driver"].verdict == findings["cuda"].verdict == "missing"
    assert "falls back to the CPU" in findings["cuda"].advice
    assert findings["triton"].verdict == "ok"
    assert "flash attention needs a GPU" in findings["attention"].found
    assert findings["loss"].found.startswith("torch: ")
    assert findings["optimizer"].found == "AdamW of torch, fused"
    assert found.status == 0
    assert "broken" not in not_ok(found).values()


def test_everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    act_as_gpu(monkeypatch)
    found = report(EVERYTHING)
    assert not_ok(found) == {}
    assert found.status == 0
    findings = by_name(found.findings)
    assert findings["loss"].found == "triton: the features are on a GPU"
    assert "varlen_attn" in findings["attention"].found
    assert findings["decoder"].found == "DALI on the GPU"
    assert "one graph for all blocks" in findings["compile"].found
    assert "4 GPUs, all by NVLink (NV4)" in findings["between gpus"].found


@pytest.mark.parametrize(("flag", "status"), [((), 0), (("--optimizer-impl", "apex"), 69)])
def test_wrong_apex(flag: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told from NVIDIA's whether it is asked for or not; in the way only if it is."""
    act_as_gpu(monkeypatch)
    found = report(WRONG_APEX, *flag)
    assert not_ok(found).pop("apex") == "broken"
    apex = by_name(found.findings)["apex"]
    assert "not NVIDIA's" in apex.found
    assert "github.com/NVIDIA/apex" in apex.advice
    assert (apex.status, found.status) == (status, status)
    assert set(not_ok(found)) == ({"apex", "optimizer"} if flag else {"apex"})


@pytest.mark.parametrize(
    ("flag", "status"), [((), 69), (("--decoder", "pillow"), 0), (("--device", "cpu"), 0)]
)
def test_dali_for_another_driver(
    flag: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail at the first batch on the GPU; on the CPU it needs no driver."""
    act_as_gpu(monkeypatch)
    found = report(OTHER_DALI, *flag)
    dali = by_name(found.findings)["dali"]
    assert dali.verdict == "broken"
    assert "is for CUDA 13; this driver runs CUDA up to 12.4" in dali.found
    assert "fastclip[dali-cuda12]" in dali.advice
    assert found.status == dali.status == status
    others = {name for name in not_ok(found) if name not in ("dali", "decoder", "OMP_NUM_THREADS")}
    assert others == set()


@pytest.mark.parametrize(("flag", "status"), [((), 0), (("--attention", "flash-attn-2"), 69)])
def test_flash_attn_that_crashes(
    flag: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never imported here: the interpreter would be gone. The A100's default does not need it."""
    act_as_gpu(monkeypatch)
    found = report(CRASHING_FLASH, *flag)
    findings = by_name(found.findings)
    assert findings["flash-attn 2"].verdict == "broken"
    assert "SIGSEGV" in findings["flash-attn 2"].found
    assert findings["attention"].verdict == ("missing" if flag else "ok")
    assert ("SIGSEGV" in findings["attention"].found) == bool(flag)
    assert found.status == status


def test_an_import_that_ends_python_is_told_where_the_trainer_would_make_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Hopper the default looks for flash-attn 3, so there a broken one ends every run."""
    from dataclasses import replace

    import torch

    from fastclip.doctor.machine import Import, TorchGpu
    from fastclip_kernels.self_attention.dispatch import find_module

    find_module.cache_clear()
    act_as_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    hopper = replace(EVERYTHING.torch, gpus=(TorchGpu(name="NVIDIA H100", capability=(9, 0)),))
    fatal = Import(problem="it ended Python with SIGABRT", fatal=True)
    machine = replace(
        EVERYTHING,
        torch=hopper,
        imports={**EVERYTHING.imports, "flash_attn_interface": fatal},
    )
    found = report(machine)
    find_module.cache_clear()
    attention = by_name(found.findings)["attention"]
    assert attention.verdict == "broken"
    assert "would import flash_attn_interface" in attention.found
    assert found.status == 69


@pytest.mark.parametrize(
    ("words", "verdict", "status"),
    [
        (("--pretrained", "/nowhere/a.pt"), "missing", 66),
        (("--resume", "/nowhere/epoch_3.pt"), "missing", 66),
        (("--resume", "latest", "--pretrained", "openai"), "ok", 0),
        (("--resume", __file__), "ok", 0),
    ],
)
def test_weights_that_flags_name(words: tuple[str, ...], verdict: str, status: int) -> None:
    weights = by_name(report(BARE, *words).findings)["weights"]
    assert (weights.verdict, weights.status) == (verdict, status)


def test_the_answers_are_the_trainers(caplog: pytest.LogCaptureFixture) -> None:
    """What doctor says of a CPU run is what the trainer then logs."""
    import logging

    from fastclip.train.distributed import World

    words = ["--model", "ViT-S-32-alt", "--train-num-samples", "64", "--batch-size", "4"]
    config = flags(*words, "--workers", "0")
    said = by_name(examine(BARE, config).findings)
    with caplog.at_level(logging.INFO, logger="fastclip"):
        parts = build_parts(config, World(), None)
    logged = [record.getMessage() for record in caplog.records]
    assert f"attention: {said['attention'].found}" in logged
    assert said["compile"].found in logged
    assert parts.data.train is not None
    sentences = parts.data.train.describe()
    parts.data.train.close()
    assert said["data"].found == sentences[0]
    assert any(sentence.startswith("decoder: DALI") for sentence in sentences) == said[
        "decoder"
    ].found.startswith("DALI")
