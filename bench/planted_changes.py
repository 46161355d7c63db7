"""Does the report see what changed, and nothing else? Real runs of one bench with a change planted in them.

    python -m bench.planted_changes --out FOLDER

Runs the losses three times, with the towers and steps between whose tests they are visited again: as it is; with
another process spinning on as many cores as there are for half of the run; and with our losses slower by 15 %. The
report's comparison should call the losses of the last one slower, and of the others the same. Ends with what it called
each; exit status 0 where that is so. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.reference_environment import ROOT
from bench.report.changes import changes
from bench.rows import OURS, load_run

SLOWER = 0.15


def pytest_addoption(parser: pytest.Parser) -> None:
    """As a plugin (`-p bench.planted_changes`)."""
    parser.addoption("--planted", type=float, default=0.0, help="our losses take so much longer")


def pytest_configure(config: pytest.Config) -> None:
    from bench import test_loss

    share, right, peers = (
        config.getoption("planted"),
        test_loss.forward_and_backward,
        test_loss.peers,
    )
    ours: list[Any] = []

    def noted(kind: str, **options: Any) -> Any:
        losses, missing = peers(kind, **options)
        ours.append(losses[OURS])
        return losses, missing

    def slower(loss: Any, inputs: Any) -> Callable[[], None]:
        step = right(loss, inputs)
        if loss not in ours:
            return step

        def call() -> None:
            started = time.perf_counter()
            step()
            ended = time.perf_counter()
            while time.perf_counter() < ended + share * (ended - started):
                pass

        return call

    if share:
        test_loss.peers, test_loss.forward_and_backward = noted, slower


@contextmanager
def spinning(processes: int) -> Iterator[None]:
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(result: Path, *words: str, disturbed_for: float = 0.0) -> float:
    """Seconds that it took."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "bench.planted_changes",
        *(
            "bench/test_loss.py",
            "bench/test_step.py",
        ),  # the losses are visited again between the steps
    ]
    command += ["--quick", "--benchmark-json", str(result), *words]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if disturbed_for:
        with spinning(os.cpu_count() or 1):
            time.sleep(disturbed_for)
    if process.wait():
        raise SystemExit(f"{' '.join(command[1:])}: exit status {process.returncode}")
    return time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the three results")
    out = parser.parse_args(arguments).out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    as_it_is, noisy, slower = (out / f"{name}.json" for name in ("as_it_is", "noisy", "slower"))
    seconds = run(as_it_is)
    run(noisy, disturbed_for=seconds / 2)
    run(slower, "--planted", str(SLOWER))
    good = True
    for path, wanted in ((noisy, "same"), (slower, "slower")):
        for change in changes(load_run(as_it_is), load_run(path)):
            good &= change.part != "loss" or change.verdict == wanted
            print(
                f"{path.stem}: {change.case}: {change.times:.3f} times the time: {change.verdict}"
            )
    print("as planted" if good else "NOT as planted")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
