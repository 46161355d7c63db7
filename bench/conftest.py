"""`pytest bench/`: options, fixtures, the table at the end, and what the JSON holds.

pytest bench/ [--quick] [--benchmark-json RESULT.json]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.ceilings import copy_rate, gemm_rate, gemm_shapes
from bench.contest import Contest
from bench.machine import machine
from bench.rows import BLOCK, SCHEMA, Ceilings, Row
from bench.sizes import Sizes, sizes_for
from bench.table import lines_of
from bench.visits import Visits
from fastclip.train.mfu import peak_flops
from fastclip.train.precision import set_backend_precision

_ROWS = pytest.StashKey[list[Row]]()
_WRONG = pytest.StashKey[list[str]]()
_VISITS = pytest.StashKey[Visits]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastclip")
    group.addoption("--quick", action="store_true", help="small sizes: minutes on a laptop's CPU")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("pytest bench/ needs pytest-benchmark: pip install '.[bench]'")
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(
            "-n: processes side by side disturb each other's times; leave it out"
        )
    if config.option.benchmark_disable:
        raise pytest.UsageError("--benchmark-disable: there is nothing in pytest bench/ but times")
    config.option.benchmark_quiet = True  # one table is enough, and theirs has no ratios
    config.stash[_ROWS], config.stash[_WRONG] = [], []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loss_size" in metafunc.fixturenames:
        where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = sizes_for(where, quick=metafunc.config.getoption("quick")).losses
        metafunc.parametrize("loss_size", found, ids=[f"{b}x{d}" for b, d in found])


@pytest.fixture(scope="session")
def device() -> torch.device:
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_backend_precision(chosen, deterministic=False)
    return chosen


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config, device: torch.device) -> Sizes:
    return sizes_for(device, quick=pytestconfig.getoption("quick"))


@pytest.fixture(scope="session")
def ceilings_of(device: torch.device, sizes: Sizes) -> dict[torch.dtype, Ceilings]:
    """By the dtype of the products: that of the ops, that of the step."""
    shapes = gemm_shapes(sizes.model, sizes.pairs, 20 * sizes.pairs)
    copied = copy_rate(device)
    return {
        dtype: Ceilings(
            gemm_rate(shapes, device, dtype),
            copied,
            None if dtype == torch.float32 else peak_flops(device, "amp_bf16"),
        )
        for dtype in {sizes.dtype, sizes.step_dtype}
    }


@pytest.fixture
def contest_in(
    benchmark: Any,
    device: torch.device,
    sizes: Sizes,
    ceilings_of: dict[torch.dtype, Ceilings],
    pytestconfig: pytest.Config,
) -> Callable[[torch.dtype], Contest]:
    """Utilisation against products in that dtype."""
    rows, visits = pytestconfig.stash[_ROWS], pytestconfig.stash[_VISITS]
    return lambda dtype: Contest(benchmark, device, sizes, ceilings_of[dtype], rows, visits)


@pytest.fixture
def contest(contest_in: Callable[[torch.dtype], Contest], sizes: Sizes) -> Contest:
    """Of an op."""
    return contest_in(sizes.dtype)


@pytest.fixture
def step_contest(contest_in: Callable[[torch.dtype], Contest], sizes: Sizes) -> Contest:
    """Of towers and the whole step."""
    return contest_in(sizes.step_dtype)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_VISITS] = Visits(len(session.items))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Any:
    """Visits come when what the test itself held is gone, and its fixtures are not."""
    try:
        item.config.stash[_VISITS].after_test()
    finally:
        done = yield
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed and call.excinfo is not None:
        item.config.stash[_WRONG].append(f"{item.name}: {str(call.excinfo.value).splitlines()[0]}")
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output_json[BLOCK] = {
        "schema": SCHEMA,
        "machine": {**machine(where), "torch_threads": torch.get_num_threads()},
        "quick": config.getoption("quick"),
        "rows": config.stash[_ROWS],
        "failed": config.stash[_WRONG],
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # a host's name is nobody's business


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows, wrong = config.stash.get(_ROWS, []), config.stash.get(_WRONG, [])
    if not rows and not wrong:
        return
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    terminalreporter.section(f"fastclip beside open_clip on {machine(where)['device']}")
    for line in lines_of(rows, wrong):
        terminalreporter.write_line(line)
