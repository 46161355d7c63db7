"""The one line about attention, and the one line where the attention that was named cannot run."""

from __future__ import annotations

import logging
from typing import Any, get_args

import pytest
import torch

from fastclip.config.parse import parse_args
from fastclip.config.resolve import resolve
from fastclip.config.train_config import AttentionBackend, TrainConfig
from fastclip.errors import EnvironmentProblem, UserError
from fastclip.train import attention
from fastclip.train.attention import set_up_attention
from fastclip_kernels.self_attention import dispatch
from fastclip_kernels.self_attention.dispatch import Facts
from fastclip_kernels.self_attention.sdpa import SDPA
from tests.kernels.flash_packages import (
    flash_attn_2,
    flash_attn_3,
    install,
    varlen_of_torch_2_14,
)
from tests.model.model_pairs import tiny
from tests.model.test_last_block import _model

CPU = torch.device("cpu")


def config(*flags: str) -> TrainConfig:
    return resolve(parse_args(["--train-data", "a.tar", "--model", "ViT-S-32", *flags]))


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(
        attention, "facts_of", lambda device, dtype, width: Facts("cuda", capability, dtype, width)
    )


def line_of(
    caplog: pytest.LogCaptureFixture,
    backend: str,
    precision: str,
    *,
    packed: bool,
    model: Any = None,
) -> str:
    """The only line that is logged."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        set_up_attention(
            model or _model(tiny(), 0),
            None,
            config("--attention", backend, "--precision", precision),
            CPU,
            packed=packed,
            teacher_packed=False,
        )
    (record,) = caplog.records
    return record.getMessage()


def test_line_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    assert line_of(caplog, "auto", "fp32", packed=True) == (
        "attention: pictures by torch's SDPA, packed captions by torch's SDPA with a mask, "
        "other captions by torch's SDPA (flash attention needs a GPU, this is cpu)"
    )
    assert line_of(caplog, "sdpa", "fp32", packed=False) == (
        "attention: pictures by torch's SDPA, captions by torch's SDPA"
    )


def test_lines_on_gpus(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, varlen_of_torch_2_14([]))
    on_gpu(monkeypatch, (8, 0))
    assert line_of(caplog, "auto", "amp_bf16", packed=True) == (
        "attention: pictures by torch's SDPA, packed captions by torch's varlen_attn, "
        "other captions by torch's SDPA"
    )
    assert line_of(caplog, "auto", "fp32", packed=True).endswith(
        "with a mask, other captions by torch's SDPA (flash attention knows no float32)"
    )
    on_gpu(monkeypatch, (9, 0))
    assert line_of(caplog, "auto", "amp_bf16", packed=False) == (
        "attention: pictures by torch's SDPA, captions by torch's SDPA "
        "(flash-attn 3: flash_attn_interface is not installed)"
    )
    install(monkeypatch, flash_attn_3([]))
    assert line_of(caplog, "auto", "amp", packed=True) == (
        "attention: pictures by flash-attn 3, packed captions by flash-attn 3, "
        "other captions by flash-attn 3"
    )


def test_each_tower_by_its_own_heads(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 36 in the image tower, which no flash kernel takes, and of 16 in the text tower."""
    install(monkeypatch, flash_attn_3([]))
    on_gpu(monkeypatch, (9, 0))
    model = _model(tiny(vision={"width": 72, "head_width": 36}), 0)
    line = line_of(caplog, "auto", "amp_bf16", packed=False, model=model)
    assert line == (
        "attention: pictures by torch's SDPA, captions by flash-attn 3 "
        "(flash attention knows no heads of 36)"
    )
    assert model.visual.transformer.attend is SDPA.full
    assert model.transformer.attend is not SDPA.causal
    with pytest.raises(EnvironmentProblem, match=r"knows no heads of 36 \(image tower\)"):
        line_of(caplog, "flash-attn-3", "amp_bf16", packed=False, model=model)


def test_the_towers_get_what_was_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    install(monkeypatch, flash_attn_2(calls))
    on_gpu(monkeypatch, (8, 0))
    model, teacher = _model(tiny(), 0), _model(tiny(), 1)
    with caplog.at_level(logging.INFO):
        set_up_attention(
            model, teacher, config("--attention", "flash-attn-2", "--precision", "amp_bf16"), CPU,
            packed=True, teacher_packed=False,
        )  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "attention: pictures by flash-attn 2, packed captions by flash-attn 2, "
        "other captions by flash-attn 2",
        "attention of the teacher: pictures by flash-attn 2, captions by flash-attn 2",
    ]
    for each in (model, teacher):
        calls.clear()
        each.encode_text(torch.zeros(1, 13, dtype=torch.int64))
        each.encode_image(torch.zeros(1, 3, 64, 64))
        assert [call["causal"] for call in calls] == [True] * 3 + [False] * 3


def test_one_named_that_cannot_run_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EnvironmentProblem) as raised:
        line_of(caplog, "flash-attn-2", "amp_bf16", packed=True)
    assert str(raised.value) == (
        "--attention flash-attn-2 cannot run: flash attention needs a GPU, this is cpu (image tower); "
        "drop the flag, or use --attention sdpa"
    )


def test_varlen_without_packed_captions_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="--attention varlen is for packed captions"):
        line_of(caplog, "varlen", "amp_bf16", packed=False)


def test_models_of_open_clip_keep_their_own(caplog: pytest.LogCaptureFixture) -> None:
    class Foreign:
        head_widths = None

    assert line_of(caplog, "auto", "fp32", packed=False, model=Foreign()) == (
        "attention: open_clip's own"
    )
    with pytest.raises(UserError, match="ViT-S-32 is not one of fastclip's own models"):
        line_of(caplog, "sdpa", "fp32", packed=False, model=Foreign())


def test_the_flag_names_what_there_is() -> None:
    assert get_args(AttentionBackend) == get_args(dispatch.BackendName)
