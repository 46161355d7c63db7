"""`pytest bench/` as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def suite(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    # a worker of pytest-xdist passes on that it is one, which turns benchmarks off
    inherited = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**inherited, "PYTHONPATH": path},
    )  # fmt: skip


def test_pytest_alone_does_not_run_it(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("testpaths") == ["tests"]


def test_a_part_of_it_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    run = suite("bench/test_tokenizer.py", "--quick", "-k", "12", "--benchmark-json", str(result))
    assert run.returncode == 0, run.stdout + run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("tokenizer ")]
    assert "1,000 captions of 12 tokens" in line
    content = json.loads(result.read_text())
    (row,) = content["fastclip_bench"]["rows"]
    low, middle, high = (row["ratios"]["open_clip"][key] for key in ("low", "median", "high"))
    assert 0 < low <= middle <= high
    (timed,) = content["benchmarks"]
    assert timed["extra_info"]["ratios"] == row["ratios"]
    assert timed["stats"]["rounds"] == 1  # of seven visits pytest-benchmark times the first
    assert len(row["ways"]["fastclip"]["seconds"]) == 7
    assert "node" not in content["machine_info"]


@pytest.mark.parametrize(("words", "told"), [
    (["-n", "2"], "processes side by side disturb each other's times"),
    (["-p", "no:benchmark"], "pip install '.[bench]'"),
])  # fmt: skip
def test_bad_use_is_one_line(words: list[str], told: str) -> None:
    run = suite("bench/test_tokenizer.py", "--quick", *words)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = (run.stdout + run.stderr).strip().splitlines()
    assert told in line
