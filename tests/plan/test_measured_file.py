"""Files of measured rates: taken as they are where they fit, one clear line where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastclip_kernels
from fastclip.errors import DataError, FastclipError, InputMissing, UserError
from fastclip.plan.chips import CHIPS, find_chip
from fastclip.plan.measured_file import read_measured

MACHINE = {
    "device": "NVIDIA A100-SXM4-40GB",
    "fastclip_kernels": fastclip_kernels.__version__,
}
A100 = CHIPS["a100-40g"]


def written(folder: Path, content: Any) -> Path:
    path = folder / "measured.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_rates_are_read(tmp_path: Path) -> None:
    rates = {"products": 2.2e14, "allreduce": 8e10, "loader": 6000}
    found = read_measured(written(tmp_path, {"machine": MACHINE, "rates": rates}), A100)
    assert found.rates == rates
    assert found.file == "measured.json"


def test_the_file_of_step_on_device_will_do(tmp_path: Path) -> None:
    cases = [{"mean_tokens": 11.5, "gemm_flops": rate, "ways": {}} for rate in (2e14, 5e14, 3e14)]
    found = read_measured(written(tmp_path, {"machine": MACHINE, "cases": cases}), A100)
    assert found.rates == {"products": 3e14}


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("{", DataError, "not JSON"),
        ([], DataError, "not on which machine"),
        ({"rates": {"products": 1}}, DataError, "not on which machine"),
        ({"machine": MACHINE}, DataError, "no usable rates"),
        ({"machine": MACHINE, "rates": {"product": 1e14}}, DataError, "named products"),
        ({"machine": MACHINE, "rates": {"products": -1}}, DataError, "above 0"),
        ({"machine": MACHINE, "cases": [{}]}, DataError, "no usable rates"),
        (
            {"machine": MACHINE | {"fastclip_kernels": "0.0.7"}, "rates": {"products": 1}},
            UserError,
            "fastclip-kernels 0.0.7, this is",
        ),
        (
            {"machine": MACHINE | {"device": "NVIDIA H100"}, "rates": {"products": 1}},
            UserError,
            "no A100",
        ),
    ],
)
def test_a_file_that_will_not_do(
    tmp_path: Path, content: Any, error: type[FastclipError], says: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(error) as raised:
        read_measured(path, A100)
    line = str(raised.value)
    assert says in line
    assert str(path) in line
    assert "\n" not in line


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="cannot be read"):
        read_measured(tmp_path / "none.json", A100)


@pytest.mark.parametrize(
    ("name", "says"),
    [("a100", "a100-40g or a100-80g"), ("H1000", "h100"), ("tpu", "choose a100-40g")],
)
def test_an_unknown_chip_is_refused_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--gpu '{name}': no such chip") as raised:
        find_chip(name)
    assert says in str(raised.value)
