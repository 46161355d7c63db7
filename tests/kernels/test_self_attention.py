"""Every way to attend gives what the formula says, forward and backward; who is chosen follows the facts."""

from __future__ import annotations

import inspect
import itertools
import math
import secrets
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import fastclip_kernels
from fastclip_kernels import BackendUnavailable
from fastclip_kernels.self_attention import dispatch
from fastclip_kernels.self_attention.dispatch import Choice, Facts, choose, facts_of, find_module
from fastclip_kernels.self_attention.flash import causal_varlen
from tests.kernels.flash_packages import (
    flash_attn_2,
    flash_attn_3,
    install,
    varlen_of_torch_2_10,
    varlen_of_torch_2_14,
)

A100 = Facts("cuda", (8, 0), torch.bfloat16, 64)
H100 = A100._replace(capability=(9, 0))
CPU = Facts("cpu", None, torch.bfloat16, 64)

# what is installed, by the name of a case
PACKAGES: dict[str, Any] = {
    "flash-attn 2": lambda calls: (flash_attn_2(calls),),
    "flash-attn 3": lambda calls: (flash_attn_3(calls),),
    "flash-attn 3, with log-sum-exp": lambda calls: (flash_attn_3(calls, returns_lse=True),),
    "torch 2.10": lambda calls: (varlen_of_torch_2_10(calls),),
    "torch 2.14": lambda calls: (varlen_of_torch_2_14(calls),),
    "nothing": lambda calls: (),
}
RUNS = [
    ("sdpa", CPU, "nothing"),
    ("flash-attn-2", A100, "flash-attn 2"),
    ("flash-attn-3", H100, "flash-attn 3"),
    ("flash-attn-3", H100, "flash-attn 3, with log-sum-exp"),
    ("varlen", A100, "torch 2.10"),
    ("varlen", A100, "torch 2.14"),
]


@pytest.fixture
def generator() -> torch.Generator:
    seed = secrets.randbits(31)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


class Packed:
    """Rows of `length` tokens cut at random; what is left of a row is a segment too."""

    def __init__(self, rows: int, length: int, generator: torch.Generator) -> None:
        starts = [0]
        for row in range(rows):
            end = (row + 1) * length
            while starts[-1] < end:
                size = int(torch.randint(1, length + 1, (), generator=generator))
                starts.append(min(starts[-1] + size, end))
        self.cu_seqlens = torch.tensor(starts, dtype=torch.int32)
        lengths = self.cu_seqlens.diff().tolist()
        places = torch.cat([torch.arange(n) for n in lengths])
        self.positions = places.view(rows, length)


def by_formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax(q kᵀ / √W) v with nothing saved or skipped; `seen` bool (T, T), or (B, 1, T, T)."""
    scores = torch.einsum("bqhw,bkhw->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhw->bqhw", weights, v)


def seen_when_packed(packed: Packed) -> Tensor:
    """(B, 1, T, T), from the starts alone."""
    rows, length = packed.positions.shape
    seen = torch.zeros(rows * length, rows * length, dtype=torch.bool)
    bounds = packed.cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        seen[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    blocks = [seen[r : r + length, r : r + length] for r in range(0, rows * length, length)]
    return torch.stack(blocks).unsqueeze(1)


def with_gradients(attend: Any, qkv: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient by the projection that q, k and v are views of."""
    qkv = qkv.clone().requires_grad_()
    out = attend(*qkv.unbind(2))
    (out * weights).sum().backward()
    assert qkv.grad is not None
    return out.detach(), qkv.grad


@pytest.mark.parametrize(
    ("backend", "facts", "package"), RUNS, ids=lambda x: x if isinstance(x, str) else ""
)
@pytest.mark.parametrize("form", ["full", "causal", "packed"])
def test_output_and_gradients_are_the_formulas(
    backend: str, facts: Facts, package: str, form: str,
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls: list[dict[str, Any]] = []
    install(monkeypatch, *PACKAGES[package](calls))
    attention = choose(backend, facts).attention
    packed = Packed(3, 11, generator)
    qkv = torch.randn(3, 11, 3, 2, 8, dtype=torch.float64, generator=generator)
    weights = torch.randn(3, 11, 2, 8, dtype=torch.float64, generator=generator)
    attend, seen = {
        "full": (attention.full, torch.ones(11, 11, dtype=torch.bool)),
        "causal": (attention.causal, torch.ones(11, 11).tril().bool()),
        "packed": (attention.packed(packed), seen_when_packed(packed)),
    }[form]
    got = with_gradients(attend, qkv, weights)
    wanted = with_gradients(lambda q, k, v: by_formula(q, k, v, seen), qkv, weights)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    if backend.startswith("flash-attn") or (backend == "varlen" and form == "packed"):
        assert [(call["packed"], call["causal"]) for call in calls] == [
            (form == "packed", form != "full")
        ]
    else:
        assert calls == []


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_reaches_flash_attn(
    deterministic: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    install(monkeypatch, flash_attn_2(calls), flash_attn_3(calls))
    q = torch.randn(2, 5, 1, 8, generator=generator)
    for backend in ("flash-attn-2", "flash-attn-3"):
        attention = choose(backend, H100._replace(deterministic=deterministic)).attention
        attention.full(q, q, q)
        attention.causal(q, q, q)
        attention.packed(Packed(2, 5, generator))(q, q, q)
    assert [call["deterministic"] for call in calls] == [deterministic] * 6


def test_facts_follow_torchs_setting() -> None:
    def facts() -> Facts:
        return facts_of(torch.device("cpu"), torch.float32, 64)

    assert not facts().deterministic
    torch.use_deterministic_algorithms(True)
    try:
        assert facts().deterministic
    finally:
        torch.use_deterministic_algorithms(False)
    assert facts()[:4] == ("cpu", None, torch.float32, 64)


def described(choice: Choice) -> tuple[str, str]:
    return choice.dense, choice.packed


ALL = ("flash-attn 2", "flash-attn 3", "torch 2.14")


@pytest.mark.parametrize(
    ("facts", "installed", "chosen", "dense_reason", "packed_reason"),
    [
        (CPU, ALL, ("sdpa-fp32", "sdpa-fp32"), "needs a GPU, this is cpu", "this is cpu"),
        (CPU._replace(dtype=torch.float32), ALL, ("sdpa", "sdpa"), "this is cpu", "this is cpu"),
        (A100, ("torch 2.14",), ("sdpa", "varlen"), None, None),
        (A100, ALL, ("sdpa", "varlen"), None, None),
        (A100, ("flash-attn 2",), ("sdpa", "flash-attn-2"), None, "2.10 and newer have it"),
        (A100, (), ("sdpa", "sdpa"), None, "flash-attn 2: flash_attn is not installed"),
        (
            A100._replace(torch_has_flash=False),
            ("torch 2.14",),
            ("sdpa", "sdpa"),
            None,
            "built without",
        ),
        (A100._replace(deterministic=True), ALL, ("sdpa", "varlen"), None, None),
        (A100._replace(dtype=torch.float16), ALL, ("sdpa", "varlen"), None, None),
        (A100._replace(dtype=torch.float32), ALL, ("sdpa", "sdpa"), "float32", "no float32"),
        (A100._replace(capability=(7, 5)), ALL, ("sdpa", "sdpa"), "A100 or newer", "A100"),
        (A100._replace(head_width=88), ALL, ("sdpa", "varlen"), None, None),
        (A100._replace(head_width=20), ALL, ("sdpa", "sdpa"), "no heads of 20", "heads of 20"),
        (A100._replace(head_width=264), ALL, ("sdpa", "sdpa"), "no heads of 264", "of 264"),
        (H100, ALL, ("flash-attn-3", "flash-attn-3"), None, None),
        (
            H100,
            ("torch 2.14",),
            ("sdpa", "varlen"),
            "flash-attn 3: flash_attn_interface is not installed",
            "flash-attn 3: flash_attn_interface is not installed",
        ),
        (H100._replace(rocm=True), ALL, ("sdpa", "sdpa"), "ROCm", "ROCm"),
        (A100._replace(capability=(10, 0)), ALL, ("sdpa", "varlen"), None, None),
    ],
)
def test_what_auto_takes(
    facts: Facts, installed: tuple[str, ...], chosen: tuple[str, str],
    dense_reason: str | None, packed_reason: str | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    install(monkeypatch, *(module for name in installed for module in PACKAGES[name]([])))
    choice = choose("auto", facts)
    assert described(choice) == chosen
    for wanted, got in (
        (dense_reason, choice.dense_reason),
        (packed_reason, choice.packed_reason),
    ):
        assert (wanted is None) == (got is None), got
        assert wanted is None or wanted in str(got)


def test_autos_parts_are_those_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    install(monkeypatch, flash_attn_2(calls))
    attention = choose("auto", A100).attention  # torch without varlen_attn
    q = torch.randn(2, 5, 1, 8)
    attention.full(q, q, q)
    attention.causal(q, q, q)
    assert calls == []
    attention.packed(Packed(2, 5, torch.Generator()))(q, q, q)
    assert [call["packed"] for call in calls] == [True]


@pytest.mark.parametrize(
    ("backend", "facts", "reason"),
    [
        ("varlen", CPU, "needs a GPU"),
        ("varlen", A100, "varlen is not installed (torch 2.10 and newer have it)"),
        ("varlen", A100._replace(torch_has_flash=False), "built without flash attention"),
        ("flash-attn-2", CPU, "needs a GPU"),
        ("flash-attn-2", A100, "flash_attn is not installed"),
        ("flash-attn-2", A100._replace(dtype=torch.float32), "knows no float32"),
        ("flash-attn-2", A100._replace(head_width=12), "no heads of 12"),
        ("flash-attn-3", A100, "needs a Hopper GPU, of compute capability 9, and this one has 8.0"),
        ("flash-attn-3", H100, "flash_attn_interface is not installed"),
    ],
)
def test_a_named_one_never_falls_back(
    backend: str, facts: Facts, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    with pytest.raises(BackendUnavailable) as raised:
        choose(backend, facts)
    assert str(raised.value).startswith(f"attention: {backend} cannot run: ")
    assert reason in str(raised.value)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"must be one of .*'flash-attn-2'.*, got 'flash'"):
        choose("flash", A100)


def test_an_old_or_foreign_package_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    old = flash_attn_2([])
    old.flash_attn_func = lambda q, k, v, dropout_p=0.0, softmax_scale=None, causal=False: q  # type: ignore[attr-defined]
    foreign = type(old)("flash_attn_interface")
    install(monkeypatch, old, foreign)
    for backend, name in (("flash-attn-2", "flash_attn"), ("flash-attn-3", "flash_attn_interface")):
        with pytest.raises(BackendUnavailable, match=f"{name} has no flash_attn_func with"):
            choose(backend, H100)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "raise OSError('libcudart.so.11:\\n  cannot open shared object file')",
            "flash_attn is installed but fails to import: OSError: libcudart.so.11: cannot open",
        ),
        ("import flash_attn_2_cuda_of_another_torch", "needs flash_attn_2_cuda_of_another_torch"),
        (None, "flash_attn is not installed"),
    ],
)
def test_whatever_an_import_raises_is_the_reason(
    source: str | None, reason: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    if source is None:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    else:
        (tmp_path / "flash_attn.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    find_module.cache_clear()
    try:
        with pytest.raises(BackendUnavailable) as raised:
            choose("flash-attn-2", A100)
        assert reason in str(raised.value)
        assert "\n" not in str(raised.value)
    finally:
        find_module.cache_clear()


def test_varlen_of_the_torch_that_is_here_takes_what_it_is_given() -> None:
    """Its kernel needs a GPU; its signature does not."""
    varlen = find_module("torch.nn.attention.varlen")
    if isinstance(varlen, str):  # torch 2.9
        assert "is not installed" in varlen
        return
    bound = causal_varlen(varlen.varlen_attn)
    signature = inspect.signature(varlen.varlen_attn)
    signature.bind(*range(7), **bound.keywords)  # type: ignore[attr-defined]
    assert set(bound.keywords) <= {"is_causal", "window_size"}  # type: ignore[attr-defined]


# the functional form


@pytest.mark.parametrize("form", ["full", "causal", "packed"])
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_functional_form(backend: Any, form: str, generator: torch.Generator) -> None:
    packed = Packed(4, 9, generator)
    qkv = torch.randn(4, 9, 3, 2, 8, dtype=torch.float64, generator=generator)
    weights = torch.randn(4, 9, 2, 8, dtype=torch.float64, generator=generator)
    options, seen = {
        "full": ({}, torch.ones(9, 9, dtype=torch.bool)),
        "causal": ({"causal": True}, torch.ones(9, 9).tril().bool()),
        "packed": (
            {"causal": True, "cu_seqlens": packed.cu_seqlens},
            seen_when_packed(packed),
        ),
    }[form]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fastclip_kernels.attention(q, k, v, backend=backend, **options)  # type: ignore[arg-type]

    got = with_gradients(ours, qkv, weights)
    wanted = with_gradients(lambda q, k, v: by_formula(q, k, v, seen), qkv, weights)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_functional_form_reaches_the_backend_named(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    install(monkeypatch, flash_attn_2(calls))
    facts = "fastclip_kernels.self_attention.functional.facts_of"
    monkeypatch.setattr(facts, lambda device, dtype, width: A100)
    packed = Packed(4, 9, generator)
    q = torch.randn(4, 9, 2, 8, generator=generator)
    got = fastclip_kernels.attention(
        q, q, q, causal=True, cu_seqlens=packed.cu_seqlens, backend="flash-attn-2"
    )
    assert [call["packed"] for call in calls] == [True]
    torch.testing.assert_close(got, by_formula(q, q, q, seen_when_packed(packed)))


Q = torch.zeros(2, 3, 1, 8)
STARTS = torch.tensor([0, 6], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((Q, Q[:, :2], Q), {}, ValueError, r"alike, got k \(2, 2, 1, 8\) and q \(2, 3, 1, 8\)"),
        ((Q[0], Q[0], Q[0]), {}, ValueError, r"must be \(B, T, H, W\) alike, got q \(3, 1, 8\)"),
        ((Q, Q, Q.double()), {}, TypeError, "one dtype and device, got v torch.float64 on cpu"),
        ((Q, Q, Q), {"cu_seqlens": STARTS}, ValueError, "pass causal=True with cu_seqlens"),
        (
            (Q, Q, Q),
            {"causal": True, "cu_seqlens": STARTS.long()},
            TypeError,
            r"cu_seqlens must be int32 \(segments \+ 1,\) on cpu, got torch.int64 \(2,\)",
        ),
        ((Q, Q, Q), {"backend": "triton"}, ValueError, "backend must be one of"),
        ((Q, Q, Q), {"backend": "varlen"}, BackendUnavailable, "needs a GPU, this is cpu"),
    ],
)
def test_functional_form_says_what_is_wrong(
    arguments: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fastclip_kernels.attention(*arguments, **options)


def test_the_names_are_said_once() -> None:
    assert set(dispatch.LABELS) | {"auto"} == set(dispatch.get_args(dispatch.BackendName))
