"""Stand-ins for flash attention's packages: their signatures and refusals, computed segment by segment.

Signatures are those of flash-attn 2.8.3 (`flash_attn`, and `flash_attn_interface` in its folder `hopper`),
of hopper's earlier releases, which return the log-sum-exp too, and of torch 2.10's and 2.14's `varlen_attn`.
No kernel is behind them, so what they compute is right in any dtype and on any device; that the real ones
agree with SDPA is for a machine with a GPU to say.
"""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastclip_kernels.self_attention import dispatch

Calls = list[dict[str, Any]]


def _dense(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    assert q.dim() == k.dim() == v.dim() == 4
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1  # the kernels check this
    out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal)
    return out.transpose(1, 2).contiguous()


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor,
    longest_q: int, longest_k: int, causal: bool,
) -> Tensor:  # fmt: skip
    assert q.dim() == k.dim() == v.dim() == 3
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert torch.equal(starts_q, starts_k)
    assert starts_q[0] == 0
    assert starts_q[-1] == len(q)
    bounds = starts_q.tolist()
    parts = []
    for start, end in itertools.pairwise(bounds):
        assert end - start <= longest_q == longest_k  # the kernels would leave rows out
        parts.append(_dense(*(t[start:end].unsqueeze(0) for t in (q, k, v)), causal)[0])
    return torch.cat(parts)


def flash_attn_2(calls: Calls) -> ModuleType:
    module = ModuleType("flash_attn")

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, tuple(window_size)) == (0.0, None, (-1, -1))
        calls.append({"packed": False, "causal": causal, "deterministic": deterministic})
        return _dense(q, k, v, causal)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
        softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, tuple(window_size)) == (0.0, None, (-1, -1))
        calls.append({"packed": True, "causal": causal, "deterministic": deterministic})
        return _varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal
        )  # fmt: skip

    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


def flash_attn_3(calls: Calls, *, returns_lse: bool = False) -> ModuleType:
    module = ModuleType("flash_attn_interface")

    def result(out: Tensor) -> Any:
        return (out, out.new_zeros(out.shape[:-1])) if returns_lse else out

    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
        v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert (softmax_scale, qv, tuple(window_size)) == (None, None, (-1, -1))
        calls.append({"packed": False, "causal": causal, "deterministic": deterministic})
        return result(_dense(q, k, v, causal))

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None,
        seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
        v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        assert (seqused_q, seqused_k, softmax_scale, qv) == (None, None, None, None)
        calls.append({"packed": True, "causal": causal, "deterministic": deterministic})
        return result(
            _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)
        )

    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    return module


def varlen_of_torch_2_10(calls: Calls) -> ModuleType:
    module = ModuleType("torch.nn.attention.varlen")

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None,
        scale=None,
    ):  # fmt: skip
        calls.append({"packed": True, "causal": is_causal})
        return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)

    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]
    return module


def varlen_of_torch_2_14(calls: Calls) -> ModuleType:
    module = ModuleType("torch.nn.attention.varlen")

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
        window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        causal = window_size == (-1, 0)  # as there: a list would be a window, not causal
        assert causal or window_size == (-1, -1)
        calls.append({"packed": True, "causal": causal})
        return _varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal)

    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]
    return module


def install(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Let `find_module` find these, and none of the others that it is asked for."""
    found = {module.__name__: module for module in modules}
    monkeypatch.setattr(
        dispatch, "find_module", lambda name: found.get(name, f"{name} is not installed")
    )
