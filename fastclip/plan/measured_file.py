"""Rates that were measured on a chip, from a JSON file.

    {"machine": {"device": "NVIDIA A100-SXM4-40GB", "fastclip_kernels": "0.1.0"},
     "rates": {"products": 2.2e14, "passes": 1.3e12, "allreduce": 8.0e10, "loader": 6000}}

`rates`: any of those that plan/rates.py lists, FLOP/s, bytes/s or samples/s of one GPU. The step_on_device.json of
`python -m bench.step_on_device` will do as it is: its GEMM rate is that of products.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import fastclip_kernels
from fastclip.errors import DataError, InputMissing, UserError
from fastclip.plan.chips import Chip

NAMES = ("products", "attention", "passes", "update", "allreduce", "loader")


class MeasuredRates(NamedTuple):
    file: str
    rates: dict[str, float]


def read_measured(path: Path, chip: Chip | None) -> MeasuredRates:
    """InputMissing, DataError for a file that is not there or holds no rates; UserError for one of another version
    or another chip.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputMissing(f"--gpu: {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"--gpu: {path}: not JSON: {error}") from None
    machine = content.get("machine") if isinstance(content, dict) else None
    if not isinstance(machine, dict) or not {"device", "fastclip_kernels"} <= machine.keys():
        raise DataError(
            f"--gpu: {path}: says not on which machine it was measured; give a step_on_device.json, or see "
            "docs/dry-run.md"
        )
    version = machine["fastclip_kernels"]
    if version != fastclip_kernels.__version__:
        raise UserError(
            f"--gpu: {path}: measured with fastclip-kernels {version}, this is {fastclip_kernels.__version__}: "
            "measure again"
        )
    if chip is not None and chip.device_name not in str(machine["device"]):
        raise UserError(f"--gpu: {path}: measured on {machine['device']}, which is no {chip.name}")
    return MeasuredRates(path.name, _rates(content, path))


def _rates(content: dict[str, Any], path: Path) -> dict[str, float]:
    rates = content.get("rates")
    if rates is None:
        cases = content.get("cases")
        gemms = [c["gemm_flops"] for c in cases or [] if isinstance(c, dict) and "gemm_flops" in c]
        rates = {"products": statistics.median(gemms)} if gemms else {}
    usable = isinstance(rates, dict) and all(
        name in NAMES and isinstance(rate, (int, float)) and rate > 0
        for name, rate in rates.items()
    )
    if not usable or not rates:
        raise DataError(
            f"--gpu: {path}: no usable rates; they are numbers above 0, named {', '.join(NAMES)}"
        )
    return {name: float(rate) for name, rate in rates.items()}
