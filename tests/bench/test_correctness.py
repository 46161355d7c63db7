"""What is wrong is not timed: one gradient of an op scaled by 1.01 stops its bench, by the op's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import (
    loss_ranks,
    model_check,
    test_attention,
    test_loss,
    test_patch_embed,
    test_tokenizer,
)
from bench.correctness import WrongResult, multiple, wrongs
from bench.loader_process import Epoch
from bench.loss_peers import peers
from bench.sizes import QUICK
from bench.test_loader import differences
from bench.test_step import flags_of
from tests.e2e.tiny_run import model_folder

CPU = torch.device("cpu")


class _Scaled(torch.autograd.Function):
    """The same, with 1.01 times its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 1.01 * gradient


def planted(form: Callable[..., Tensor], at: int) -> Callable[..., Tensor]:
    """`form` with the gradient of its argument number `at` wrong."""

    def wrong(*inputs: Tensor, **options: Any) -> Tensor:
        given = [_Scaled.apply(x) if i == at else x for i, x in enumerate(inputs)]
        return form(*given, **options)

    return wrong


class _NeverTimes:
    """In place of the fixture: what comes so far has been found right."""

    sizes, device = QUICK, CPU

    def run(self, part: str, case: str, *args: Any, **more: Any) -> None:
        raise AssertionError(f"{part}, {case} would be timed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "at", "what"), [
    ("clip", 0, "d image"), ("clip", 1, "d text"), ("clip", 2, "d scale"), ("siglip", 3, "d bias"),
])  # fmt: skip
def test_a_wrong_gradient_of_a_loss(kind: str, at: int, what: str, dtype: torch.dtype) -> None:
    losses, _ = peers(kind, compiled=False)
    assert test_loss.check(kind, losses, 67, 48, dtype, CPU) == {}
    wrong = {**losses, "fastclip": planted(losses["fastclip"], at)}
    with pytest.raises(WrongResult, match=f"^{kind}_loss 67x48 {dtype}, fastclip: .*{what}"):
        test_loss.check(kind, wrong, 67, 48, dtype, CPU)


def test_a_wrong_gradient_of_the_loss_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(loss_ranks.measure(0, 1, 33, 16, 2).seconds["fastclip"]) == 2
    right = loss_ranks.ClipLoss
    monkeypatch.setattr(loss_ranks, "ClipLoss", lambda **options: planted(right(**options), 1))
    with pytest.raises(WrongResult, match=r"^ClipLoss on 1 ranks: .*d text"):
        loss_ranks.measure(0, 1, 33, 16, 2)


def test_a_peer_that_is_wrong_is_named_and_not_timed() -> None:
    losses, _ = peers("clip", compiled=False)

    def broken(*inputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    found = test_loss.check(
        "clip",
        {**losses, "wrong": planted(losses["open_clip"], 0), "large": broken},
        67, 48, torch.float32, CPU,
    )  # fmt: skip
    assert found["wrong"].startswith("wrong, so not timed: d image")
    assert found["large"] == "out of memory"


@pytest.mark.parametrize("at", range(3))
def test_a_wrong_gradient_of_the_patch_embedding(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="would be timed"):
        test_patch_embed.test_patch_embed(_NeverTimes())  # type: ignore[arg-type]
    right = test_patch_embed.patch_embed
    # the pixels are the first argument
    monkeypatch.setattr(test_patch_embed, "patch_embed", planted(right, at + 1))
    with pytest.raises(WrongResult, match=r"^patch_embed 32"):
        test_patch_embed.test_patch_embed(_NeverTimes())  # type: ignore[arg-type]


@pytest.mark.parametrize("at", range(3))
def test_a_wrong_gradient_of_attention(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_attention, "attention", planted(test_attention.attention, at))
    with pytest.raises(WrongResult, match=f"^attention .*d {'qkv'[at]}"):
        test_attention.test_attention_of_pictures(_NeverTimes())  # type: ignore[arg-type]
    with pytest.raises(WrongResult, match=f"^packed attention .*d {'qkv'[at]}"):
        test_attention.test_attention_of_captions(12, _NeverTimes())  # type: ignore[arg-type]


def test_another_id_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = test_tokenizer.fastclip.get_tokenizer(QUICK.model)

    def wrong(captions: list[str]) -> Tensor:
        ids: Tensor = right(captions)
        ids[17, 1] += 1
        return ids

    monkeypatch.setattr(
        test_tokenizer, "fastclip", SimpleNamespace(get_tokenizer=lambda name: wrong)
    )
    with pytest.raises(WrongResult, match=r"^tokenizer: .*1 captions have other ids"):
        test_tokenizer.test_tokenizer(12, _NeverTimes())  # type: ignore[arg-type]


def test_a_wrong_gradient_of_the_model(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: Any = SimpleNamespace(model=model_folder(tmp_path))
    flags = flags_of(sizes, CPU, 4)
    seed = torch.seed() % (1 << 31)
    print(f"seed {seed}")
    drawn = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=drawn)
    texts = torch.randint(1, 49000, (4, 16), generator=drawn)
    texts[:, 9] = 49407
    check = partial(model_check.check_model, flags, "amp_bfloat16", images, texts)
    check()
    right = model_check.our_resident

    def wrong(name: str, *given: Any) -> Any:
        resident = right(*given)
        parameter = dict(resident.model.named_parameters())[name]
        parameter.register_hook(lambda gradient: 1.01 * gradient)
        return resident

    for name in ("visual.proj", "transformer.resblocks.0.mlp.c_fc.weight", "logit_scale"):
        monkeypatch.setattr(model_check, "our_resident", partial(wrong, name))
        with pytest.raises(WrongResult, match=rf"^model in fp32: .*d {name}: "):
            check()


def test_an_epoch_of_the_loader_that_is_not_the_references() -> None:
    wanted = Epoch(96, 1100, -0.31)
    assert differences(Epoch(96, 1120, -0.28), wanted, 96) == []
    for wrong in (Epoch(95, 1100, -0.31), Epoch(96, 1300, -0.31), Epoch(96, 1100, 0.4)):
        assert len(differences(wrong, wanted, 96)) == 1


def test_rounding_averages_out_and_a_factor_does_not() -> None:
    truth = torch.randn(4000, dtype=torch.float64)
    rounded = {"x": truth.to(torch.bfloat16)}
    assert abs(multiple(rounded["x"], truth) - 1) < 1e-3
    assert wrongs(rounded, {"x": truth}, rounded, 0.0) == []
    (found,) = wrongs({"x": (1.01 * truth).bfloat16()}, {"x": truth}, rounded, 0.05)
    assert 1.009 < float(found.split()[1]) < 1.011
    # not a number is wrong too
    assert wrongs({"x": truth * float("nan")}, {"x": truth}, rounded, 0.05)
