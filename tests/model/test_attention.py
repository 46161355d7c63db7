"""A whole model attends by any backend to the same features and gradients."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastclip.data.batch import PackedText
from fastclip.model.recompute import Recompute
from fastclip_kernels.self_attention.dispatch import Facts, choose, find_module
from fastclip_kernels.self_attention.sdpa import SDPA
from tests.kernels.flash_packages import (
    flash_attn_2,
    flash_attn_3,
    install,
    varlen_of_torch_2_10,
    varlen_of_torch_2_14,
)
from tests.model.model_pairs import pictures, tiny
from tests.model.test_last_block import _model
from tests.model.test_packed_text import captions, packed

H100 = Facts("cuda", (9, 0), torch.bfloat16, 64)
BACKENDS: dict[str, Any] = {
    "varlen of torch 2.10": ("varlen", varlen_of_torch_2_10),
    "varlen of torch 2.14": ("varlen", varlen_of_torch_2_14),
    "flash-attn-2": ("flash-attn-2", flash_attn_2),
    "flash-attn-3": ("flash-attn-3", flash_attn_3),
}


def outcome(model: Any, images: Tensor, text: Any, seed: int) -> dict[str, Tensor]:
    """Features of both towers, and every parameter's gradient."""
    model.zero_grad()
    features = {
        "image": model.encode_image(images, normalize=True),
        "text": model.encode_text(text, normalize=True),
    }
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (f * torch.randn(f.shape, generator=generator, dtype=f.dtype)).sum()
        for f in features.values()
    )
    total.backward()  # type: ignore[union-attr]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**{k: f.detach() for k, f in features.items()}, **gradients}


@pytest.mark.parametrize("recompute", get_args(Recompute))
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_model_is_the_same_by_any_backend(
    backend: str, pruned: bool, recompute: Recompute, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, package = BACKENDS[backend]
    calls: list[dict[str, Any]] = []
    install(monkeypatch, package(calls))
    model = _model(tiny(), seed % 1000).double()
    if pruned:
        model.prune_last_block()
    images = pictures(model, 3, seed).double()
    dense = captions(model.config.text_cfg, seed)
    texts = {"dense": dense, "packed": packed(model.config.text_cfg, dense, rows=6)}
    wanted = outcome(model, images, dense, seed)

    attention = choose(name, H100).attention
    model.use_attention(attention, attention)
    model.set_recompute(recompute)
    for form, text in texts.items():
        calls.clear()
        got = outcome(model, images, text, seed)
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-10, msg=f"{form} {key}")
        kinds = {(call["packed"], call["causal"]) for call in calls}
        # varlen is for packed captions only
        wanted_kinds = {(False, False), (False, True), (True, True)}
        wanted_kinds -= {(form != "packed", True)}
        assert kinds == {k for k in wanted_kinds if k[0] or name != "varlen"}


@pytest.mark.parametrize(("recompute", "times"), [("none", 1), ("pointwise", 1), ("full", 2)])
def test_only_full_recompute_attends_twice(
    recompute: Recompute, times: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    install(monkeypatch, flash_attn_2(calls))
    model = _model(tiny(), seed % 1000)
    attention = choose("flash-attn-2", H100).attention
    model.use_attention(attention, attention)
    model.set_recompute(recompute)
    text = packed(model.config.text_cfg, captions(model.config.text_cfg, seed), rows=6)
    outcome(model, pictures(model, 3, seed), text, seed)
    layers = len(model.visual.transformer.blocks) + len(model.transformer.blocks)
    assert len(calls) == times * layers


def test_a_tower_that_is_not_causal_attends_to_all(seed: int) -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise AssertionError("not this tower's")

    model = _model(tiny(text={"no_causal_mask": True}), seed % 1000)
    model.use_attention(SDPA._replace(causal=wrong), SDPA._replace(causal=wrong))
    model.encode_image(pictures(model, 2, seed))
    model.encode_text(captions(model.config.text_cfg, seed))
    model = _model(tiny(), seed % 1000)
    model.use_attention(SDPA, SDPA._replace(full=wrong))
    model.encode_text(captions(model.config.text_cfg, seed))


def test_head_widths_are_those_of_the_towers() -> None:
    model = _model(tiny(), 0)
    seen: list[int] = []

    def noted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.shape[-1])
        return SDPA.full(q, k, v)

    noting = SDPA._replace(full=noted, causal=noted)
    model.use_attention(noting, noting)
    model.encode_image(pictures(model, 1, 0))
    model.encode_text(captions(model.config.text_cfg, 0))
    assert list(dict.fromkeys(seen)) == list(model.head_widths) == [32, 16]


class Noting(TorchDispatchMode):
    """The calls of one op."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(op) == self.name:
            self.calls.append(args)
        return op(*args, **(kwargs or {}))


def test_torchs_own_varlen_takes_what_the_text_tower_gives_it() -> None:
    """On shapes alone: its op has a kernel for GPUs and one for shapes."""
    if isinstance(find_module("torch.nn.attention.varlen"), str):
        return  # torch 2.9
    attention = choose("varlen", H100).attention
    rows, length, texts = 3, 13, 7
    with torch.device("meta"):
        model = _model(tiny(), 0).bfloat16()
        model.use_attention(attention, attention)
        model.prune_last_block()
        text = PackedText(
            ids=torch.zeros(rows, length, dtype=torch.int64),
            positions=torch.zeros(rows, length, dtype=torch.int64),
            cu_seqlens=torch.zeros(texts + rows + 1, dtype=torch.int32),
            ends=torch.zeros(texts, dtype=torch.int64),
            dense=None,
        )
        with Noting("torch_attn._varlen_attn.default") as noted:
            features = model.encode_text(text)
        assert features.shape == (texts, 40)
        assert features.dtype == torch.bfloat16
    assert len(noted.calls) == 3  # one a layer
    for q, k, v, starts_q, starts_k, longest_q, longest_k, causal, *_ in noted.calls:
        assert {tuple(t.shape) for t in (q, k, v)} == {(rows * length, 3, 16)}
        assert starts_q is starts_k
        assert len(starts_q) == texts + rows + 1
        assert (longest_q, longest_k, causal) == (length, length, True)
