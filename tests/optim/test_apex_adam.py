"""apex's FusedAdam goes torch's way, and its checkpoints are torch's, both ways."""

from __future__ import annotations

import copy
import io
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastclip.config.train_config import OptimConfig
from fastclip.errors import DataError, EnvironmentProblem, UserError
from fastclip.optim.build import (
    build_optimizer,
    describe,
    load_optimizer_state,
    portable_state_dict,
)
from fastclip.optim.update import Update
from tests.optim import apex_packages
from tests.optim.test_build import Tiny, _reference_adamw, _train

APEX = OptimConfig(lr=1e-2, optimizer_impl="apex")
TORCH = OptimConfig(lr=1e-2, optimizer_impl="torch")


@pytest.fixture
def seed() -> int:
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def _nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    apex_packages.install_nvidias(monkeypatch)


def close(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.usefixtures("_nvidias")
def test_same_weights_as_torchs(seed: int) -> None:
    torch.manual_seed(seed)
    ours = Tiny()
    theirs = copy.deepcopy(ours)
    optimizer, reference = build_optimizer(APEX, ours), _reference_adamw(theirs, TORCH)
    assert isinstance(optimizer, apex_packages.FusedAdam)
    for part, lr in enumerate((1e-2, 3e-3, 2e-2)):  # the schedule sets it in the groups
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = lr
        _train(ours, optimizer, 4, seed + part)
        _train(theirs, reference, 4, seed + part)
        close(ours, theirs)


@pytest.mark.usefixtures("_nvidias")
def test_state_is_what_torch_would_have_written(seed: int) -> None:
    torch.manual_seed(seed)
    ours = Tiny()
    theirs = copy.deepcopy(ours)
    optimizer, reference = build_optimizer(APEX, ours), _reference_adamw(theirs, TORCH)
    assert portable_state_dict(optimizer) == reference.state_dict()  # before the first step
    _train(ours, optimizer, 3, seed)
    _train(theirs, reference, 3, seed)
    saved, wanted = portable_state_dict(optimizer), reference.state_dict()
    assert saved["param_groups"] == wanted["param_groups"]
    assert saved["state"].keys() == wanted["state"].keys()
    for index, values in wanted["state"].items():
        assert list(saved["state"][index]) == list(values)
        for key, value in values.items():
            torch.testing.assert_close(saved["state"][index][key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("_nvidias")
@pytest.mark.parametrize(
    "order", [(TORCH, APEX, TORCH), (APEX, TORCH, APEX), (APEX, APEX, TORCH)], ids=str
)
def test_checkpoints_are_exchanged(order: tuple[OptimConfig, ...], seed: int) -> None:
    torch.manual_seed(seed)
    straight, mixed = Tiny(), Tiny()
    mixed.load_state_dict(straight.state_dict())
    reference = _reference_adamw(straight, TORCH)
    saved: dict[str, Any] | None = None
    for part, config in enumerate(order):
        _train(straight, reference, 3, seed + part)
        optimizer = build_optimizer(config, mixed)
        if saved is not None:
            assert load_optimizer_state(optimizer, saved, "file") == []
        _train(mixed, optimizer, 3, seed + part)
        saved = through_a_file(portable_state_dict(optimizer))
    close(mixed, straight)
    back = _reference_adamw(mixed, TORCH)
    assert saved is not None
    back.load_state_dict(saved)
    _train(mixed, back, 3, seed)
    _train(straight, reference, 3, seed)
    close(mixed, straight)


@pytest.mark.usefixtures("_nvidias")
def test_loading_twice_takes_the_count_of_the_file(seed: int) -> None:
    model = Tiny()
    optimizer = build_optimizer(APEX, model)
    _train(model, optimizer, 2, seed)
    saved = through_a_file(portable_state_dict(optimizer))
    _train(model, optimizer, 5, seed)
    assert load_optimizer_state(optimizer, saved, "file") == []
    assert {float(v["step"]) for v in optimizer.state_dict()["state"].values()} == {2.0}


@pytest.mark.usefixtures("_nvidias")
def test_flags_win_over_the_checkpoint_and_say_so() -> None:
    model = Tiny()
    old = build_optimizer(OptimConfig(wd=0.2), model)
    new = build_optimizer(OptimConfig(wd=0.1, optimizer_impl="apex"), model)
    lines = load_optimizer_state(new, portable_state_dict(old), "file")
    assert lines == ["group 1: weight_decay 0.2 in the checkpoint, 0.1 from the flags"]
    assert new.param_groups[1]["weight_decay"] == 0.1


@pytest.mark.usefixtures("_nvidias")
def test_updates_unequally_often_are_refused(seed: int) -> None:
    model = Tiny()
    optimizer = build_optimizer(TORCH, model)
    _train(model, optimizer, 2, seed)
    state = portable_state_dict(optimizer)
    state["state"][1]["step"] = torch.tensor(1.0)
    with pytest.raises(
        DataError, match=r"have \[1, 2\] behind them; resume with --optimizer-impl torch"
    ):
        load_optimizer_state(build_optimizer(APEX, model), state, "file.pt")


@pytest.mark.usefixtures("_nvidias")
def test_a_step_that_is_not_finite_changes_and_counts_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    model = Tiny()
    optimizer = build_optimizer(APEX, model)
    update = Update(optimizer, model.logit_scale, clip_norm=1.0, scaler=None, nonfinite="skip")

    def step(x: torch.Tensor) -> None:
        update.zero_grad()
        model(x).backward()
        update.apply()

    step(torch.randn(5, 4))
    before = copy.deepcopy((model.state_dict(), portable_state_dict(optimizer)))
    step(torch.full((5, 4), float("nan")))
    torch.testing.assert_close(
        (model.state_dict(), portable_state_dict(optimizer)), before, rtol=0, atol=0
    )
    assert update.read_skips() == (1, 1)
    step(torch.randn(5, 4))
    assert {float(v["step"]) for v in optimizer.state_dict()["state"].values()} == {2.0}


@pytest.mark.usefixtures("_nvidias")
def test_a_group_without_parameters_is_refused() -> None:
    model = Tiny()
    model.positional_embedding.requires_grad_(False)
    model.linear.weight.requires_grad_(False)
    with pytest.raises(UserError, match="everything that is decayed is locked"):
        build_optimizer(APEX, model)


@pytest.mark.usefixtures("_nvidias")
def test_the_log_says_whose_it_is() -> None:
    line = describe(APEX, build_optimizer(APEX, Tiny()))
    assert line.startswith("Created ApexAdamW (adamw) optimizer: lr: 0.01, ")
    assert "weight_decay: 0.2" in line


def _refusal() -> str:
    with pytest.raises(EnvironmentProblem) as raised:
        build_optimizer(APEX, Tiny())
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith("--optimizer-impl apex: ")
    assert "https://github.com/NVIDIA/apex" in line
    assert "`apex` on PyPI is another project" in line
    return line


@pytest.mark.parametrize(
    ("fused_adam", "reason"),
    [
        (None, "the installed apex has no FusedAdam"),
        (apex_packages.WithoutExtensions, "FusedAdam requires cuda extensions"),
        (
            apex_packages.ForAnotherDevice,
            "not run on cpu: RuntimeError: expected input to be on cuda",
        ),
    ],
)
def test_nvidias_that_cannot_run_is_one_line(
    fused_adam: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apex_packages.install_nvidias(monkeypatch, fused_adam)
    assert reason in _refusal()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Session: ...", "apex.optimizers is not installed"),
        (
            "from a_web_framework_that_is_absent.config import Configurator",
            "apex is installed but needs a_web_framework",
        ),
        (
            "raise ImportError('cannot import name\\n Unencrypted')",
            "cannot import name Unencrypted",
        ),
    ],
)
def test_the_apex_of_pypi_is_one_line(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert reason in _refusal()
    finally:
        sys.modules.pop("apex", None)


def test_none_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "apex is not installed" in _refusal()
