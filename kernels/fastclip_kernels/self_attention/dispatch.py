"""Which attention runs: the one that was named, or the fastest that is known to be right here.

The only file of this package that looks for flash-attn, and only when it is asked to choose.

    backend       dense                          packed captions
    sdpa          torch's SDPA                   torch's SDPA with a mask; any device and dtype
    sdpa-fp32     SDPA, computed in float32      the same with a mask; half precision on a CPU
    varlen        torch's SDPA                   torch's varlen_attn (torch 2.10 and newer)
    flash-attn-2  flash_attn_func                flash_attn_varlen_func
    flash-attn-3  the same of flash_attn_interface, on Hopper

`auto` takes sdpa-fp32 for half precision on a CPU, and flash-attn 3 on Hopper where it can be imported.
Else dense attention is SDPA, whose flash kernel is flash-attn 2's, and packed attention the first that can
run of varlen, flash-attn-2, sdpa.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch

from ..backend import BackendUnavailable
from . import flash, widened
from .kinds import TowerAttention
from .sdpa import SDPA

Backend = Literal["sdpa", "sdpa-fp32", "varlen", "flash-attn-2", "flash-attn-3"]
BackendName = Literal["auto", "sdpa", "sdpa-fp32", "varlen", "flash-attn-2", "flash-attn-3"]

LABELS: dict[Backend, str] = {
    "sdpa": "torch's SDPA",
    "sdpa-fp32": "torch's SDPA in float32",
    "varlen": "torch's varlen_attn",
    "flash-attn-2": "flash-attn 2",
    "flash-attn-3": "flash-attn 3",
}


class Facts(NamedTuple):
    """All that a choice depends on, beside what is installed."""

    device_type: str
    capability: tuple[int, int] | None  # of a CUDA device
    dtype: torch.dtype  # of queries, keys and values: autocast's where it is on
    head_width: int
    deterministic: bool = False  # the same bits from run to run, in backward too
    rocm: bool = False
    torch_has_flash: bool = True  # torch was built with its flash kernels


def facts_of(device: torch.device, dtype: torch.dtype, head_width: int) -> Facts:
    """The facts of this machine and of torch's settings as they are now."""
    on_cuda = device.type == "cuda"
    return Facts(
        device.type,
        torch.cuda.get_device_capability(device) if on_cuda else None,
        dtype,
        head_width,
        torch.are_deterministic_algorithms_enabled(),
        torch.version.hip is not None,
        torch.backends.cuda.is_flash_attention_available(),
    )


class Choice(NamedTuple):
    """What a tower calls."""

    attention: TowerAttention
    dense: Backend
    packed: Backend
    # why nothing faster, one clause each for a log line; None: there is nothing faster, or it was named
    dense_reason: str | None
    packed_reason: str | None


def choose(backend: str, facts: Facts) -> Choice:
    """The attention of a tower whose heads are as `facts` say.

    Raises ValueError for a name that does not exist, BackendUnavailable with the reason for one that
    cannot run here: a backend that is named never falls back to another.
    """
    if backend not in get_args(BackendName):
        raise ValueError(
            f"attention: backend must be one of {get_args(BackendName)}, got {backend!r}"
        )
    if backend != "auto":
        named: Backend = backend  # type: ignore[assignment]
        found = _FIND[named](facts)
        if isinstance(found, str):
            raise BackendUnavailable(f"attention: {backend} cannot run: {found}")
        return Choice(found, "sdpa" if named == "varlen" else named, named, None, None)
    hopper: tuple[Backend, ...] = ("flash-attn-3",) if _is_hopper(facts) else ()
    dense, of_dense, dense_reason = _first((*hopper, "sdpa"), facts)
    packed, of_packed, packed_reason = _first((*hopper, "varlen", "flash-attn-2", "sdpa"), facts)
    together = of_dense._replace(packed=of_packed.packed)
    return Choice(together, dense, packed, dense_reason, packed_reason)


def _first(order: tuple[Backend, ...], facts: Facts) -> tuple[Backend, TowerAttention, str | None]:
    """The first of `order` that runs, and why those before it do not. SDPA runs everywhere."""
    none_runs = _no_flash(facts)
    if none_runs is not None:
        found = _sdpa_fp32(facts)
        return (
            ("sdpa", SDPA, none_runs) if isinstance(found, str) else ("sdpa-fp32", found, none_runs)
        )
    reasons: list[str] = []
    for name in order:
        found = _FIND[name](facts)
        if not isinstance(found, str):
            return name, found, "; ".join(reasons) or None
        reasons.append(f"{LABELS[name]}: {found}")
    raise AssertionError("SDPA runs everywhere")


def _no_flash(facts: Facts) -> str | None:
    """Why no flash attention, whoever made it, will do here; None if one may."""
    if facts.device_type != "cuda":
        return f"flash attention needs a GPU, this is {facts.device_type}"
    if facts.rocm:
        return "flash attention was never run on ROCm"
    if facts.dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention knows no {str(facts.dtype).removeprefix('torch.')}"
    assert facts.capability is not None
    if facts.capability < (8, 0):
        return "flash attention needs an A100 or newer"
    if facts.head_width % 8 or facts.head_width > 256:
        return f"flash attention knows no heads of {facts.head_width}"
    return None


def _is_hopper(facts: Facts) -> bool:
    return facts.capability is not None and facts.capability[0] == 9 and not facts.rocm


def _sdpa(facts: Facts) -> TowerAttention:
    return SDPA


def _sdpa_fp32(facts: Facts) -> TowerAttention | str:
    if facts.device_type != "cpu" or facts.dtype not in (torch.float16, torch.bfloat16):
        return "it is for half precision on a CPU"
    return widened.missing() or widened.WIDENED


def _varlen(facts: Facts) -> TowerAttention | str:
    obstacle = _no_flash(facts)
    if obstacle is not None:
        return obstacle
    if not facts.torch_has_flash:
        return "this torch was built without flash attention"
    module = find_module("torch.nn.attention.varlen")
    if isinstance(module, str):
        return f"{module} (torch 2.10 and newer have it)"
    return flash.of_torch(module.varlen_attn)


def _flash_attn_2(facts: Facts) -> TowerAttention | str:
    return _no_flash(facts) or _flash_attn("flash_attn", facts)


def _flash_attn_3(facts: Facts) -> TowerAttention | str:
    obstacle = _no_flash(facts)
    if obstacle is not None:
        return obstacle
    if not _is_hopper(facts):
        assert facts.capability is not None
        has = ".".join(map(str, facts.capability))
        return f"it needs a Hopper GPU, of compute capability 9, and this one has {has}"
    return _flash_attn("flash_attn_interface", facts)


def _flash_attn(name: str, facts: Facts) -> TowerAttention | str:
    module = find_module(name)
    if isinstance(module, str):
        return module
    functions = []
    for wanted in ("flash_attn_func", "flash_attn_varlen_func"):
        function = getattr(module, wanted, None)
        # `deterministic` came with 2.4.1
        if function is None or "deterministic" not in inspect.signature(function).parameters:
            return f"{name} has no {wanted} with `deterministic`: it is too old, or another package"
        functions.append(function)
    return flash.of_flash_attn(*functions, deterministic=facts.deterministic)


_FIND: dict[Backend, Callable[[Facts], TowerAttention | str]] = {
    "sdpa": _sdpa,
    "sdpa-fp32": _sdpa_fp32,
    "varlen": _varlen,
    "flash-attn-2": _flash_attn_2,
    "flash-attn-3": _flash_attn_3,
}


@functools.cache
def find_module(name: str) -> ModuleType | str:
    """The module `name`, or the reason in words why it cannot be used.

    A compiled extension built for another torch raises whatever it likes at import, so every exception
    counts as "cannot be used". Looked for once: attention may be chosen in every call.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return f"{error.name} is not installed"
        return f"{name} is installed but needs {error.name}, which is not"
    except Exception as error:
        text = " ".join(str(error).split())  # a log line is one line
        return f"{name} is installed but fails to import: {type(error).__name__}: {text}"
