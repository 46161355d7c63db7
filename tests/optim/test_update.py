"""An update is the reference's while everything is finite, and no update at all where it is not."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastclip.config.train_config import OptimConfig
from fastclip.optim.build import build_optimizer
from fastclip.optim.update import Update


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.logit_scale = nn.Parameter(torch.tensor(4.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean() * self.logit_scale.exp()


def _update(model: Tiny, **options) -> Update:
    settings = {"clip_norm": None, "scaler": None, "nonfinite": "skip", **options}
    return Update(build_optimizer(OptimConfig(lr=0.1), model), model.logit_scale, **settings)


def _step(model: Tiny, update: Update, x: torch.Tensor) -> None:
    update.zero_grad()
    update.scale(model(x)).backward()
    update.apply()


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_equals_torch_while_finite(clip_norm: float | None) -> None:
    ours = Tiny()
    theirs = copy.deepcopy(ours)
    update = _update(ours, clip_norm=clip_norm)
    optimizer = build_optimizer(OptimConfig(lr=0.1), theirs)
    for _ in range(5):
        x = torch.randn(7, 6)
        _step(ours, update, x)
        optimizer.zero_grad()
        theirs(x).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or math.inf)
        optimizer.step()
        with torch.no_grad():
            theirs.logit_scale.clamp_(0, math.log(100))
        torch.testing.assert_close(update.grad_norm, norm)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)
    assert update.read_skips() == (0, 0)


def test_logit_scale_stays_within_the_clamp() -> None:
    model = Tiny()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    _step(model, _update(model), torch.randn(3, 6))
    assert model.logit_scale.item() == pytest.approx(math.log(100))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_step_changes_nothing_and_is_counted(bad: float) -> None:
    model = Tiny()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    update = _update(model)
    _step(model, update, torch.randn(3, 6))
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(update.optimizer.state_dict()["state"])
    for _ in range(3):
        _step(model, update, torch.full((3, 6), bad))
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    for index, values in update.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[k], state[index][k]) for k in values), index
    assert update.read_skips() == (3, 3)
    _step(model, update, torch.randn(3, 6))
    assert not torch.equal(model.linear.weight, weights["linear.weight"])
    assert update.read_skips() == (3, 3)  # the run of 3 had not ended at the last reading
    assert update.read_skips() == (3, 0)


def test_ignore_is_the_reference_and_spreads_nan() -> None:
    model = Tiny()
    _step(model, _update(model, nonfinite="ignore"), torch.full((3, 6), math.nan))
    assert model.linear.weight.isnan().all()


def test_optimizers_that_cannot_skip_on_the_device_skip_too() -> None:
    model = Tiny()
    options = {"lr": 0.1, "eps": 1e-8, "beta1": 0.9, "beta2": 0.95}
    optimizer = build_optimizer(OptimConfig(opt="timm/lamb", **options), model)
    update = Update(optimizer, model.logit_scale, clip_norm=None, scaler=None, nonfinite="skip")
    before = model.linear.weight.clone()
    _step(model, update, torch.full((3, 6), math.nan))
    assert torch.equal(model.linear.weight, before)
    _step(model, update, torch.randn(3, 6))
    assert not torch.equal(model.linear.weight, before)


def test_scaler_backs_off_and_applies_what_is_finite() -> None:
    model = Tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    update = _update(model, scaler=scaler)
    before = model.linear.weight.clone()
    _step(model, update, torch.full((3, 6), math.inf))
    assert torch.equal(model.linear.weight, before)
    assert scaler.get_scale() == 2.0**19
    _step(model, update, torch.randn(3, 6))
    assert not torch.equal(model.linear.weight, before)


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("nonfinite", ["skip", "stop", "ignore"])
def test_an_update_on_a_gpu_never_waits_for_it(clip_norm: float | None, nonfinite: str) -> None:
    """On shapes alone, where whatever asks for a value raises; no GPU needed."""
    with FakeTensorMode(), torch.device("cuda"):
        model = Tiny()
        update = _update(model, clip_norm=clip_norm, nonfinite=nonfinite)
        for _ in range(2):
            update.zero_grad()
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            update.apply()
        assert update.grad_norm.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):  # what waiting looks like
            update.read_skips()
