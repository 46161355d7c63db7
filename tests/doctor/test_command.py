"""`fastclip doctor` as a command, with real broken packages and a real stub of nvidia-smi around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastclip.cli.main import main
from tests.doctor.schema import SCHEMA, problems

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    *("--model", "ViT-S-32-alt"),
    *("--dataset-type", "synthetic"),
    *("--train-num-samples", "64"),
    *("--batch-size", "8"),
    *("--workers", "1"),
    *("--precision", "amp_bf16"),
    *("--logs", "none"),
]

NVIDIA_SMI = """#!/bin/sh
case "$1" in
--query-gpu=*) echo "0, GPU-aaaa, NVIDIA A100-SXM4-80GB, 550.90.07, 81920, %(used)s, %(mode)s, Disabled";;
--query-compute-apps=*) echo "%(apps)s";;
topo) printf '\\t\\033[4mGPU0\\tCPU Affinity\\tNUMA Affinity\\033[0m\\nGPU0\\t X \\t0-31\\t0\\n';;
*) echo "| NVIDIA-SMI 550.90.07      Driver Version: 550.90.07      CUDA Version: 12.4     |";;
esac
"""


def doctor(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """(exit status, findings by name), with folder/packages to import from and folder/bin to run programs from."""
    done = subprocess.run(
        [sys.executable, "-m", "fastclip", "doctor", "--json", *RUN, *words],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{folder / 'packages'}:{ROOT}:{ROOT / 'kernels'}",
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert problems(report) == []
    findings = [f for section in report["sections"] for f in section["findings"]]
    assert report["status"] == done.returncode
    return done.returncode, {finding["name"]: finding for finding in findings}


def package(folder: Path, name: str, code: str) -> None:
    place = folder / "packages" / name
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(code)


def nvidia_smi(folder: Path, *, used: int = 4, mode: str = "Default", apps: str = "") -> None:
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(NVIDIA_SMI % {"used": used, "mode": mode, "apps": apps})
    program.chmod(0o755)


def test_a_machine_of_broken_packages(tmp_path: Path) -> None:
    """apex of another project, and a flash-attn whose import is a segmentation fault; one is asked for by a flag."""
    package(tmp_path, "apex", "from pyramid.session import UnencryptedCookie\n")
    package(tmp_path, "flash_attn", "import ctypes\nctypes.string_at(0)\n")
    status, found = doctor(tmp_path, "--device", "cpu", "--optimizer-impl", "apex")
    assert found["apex"]["verdict"] == "broken"
    assert "not NVIDIA's" in found["apex"]["found"]
    assert found["optimizer"]["verdict"] == "missing"
    assert found["flash-attn 2"]["verdict"] == "broken"
    assert "SIGSEGV" in found["flash-attn 2"]["found"]
    assert found["attention"]["verdict"] == "ok"
    assert status == 69


@pytest.mark.slow
def test_a_gpu_taken_by_another_process(tmp_path: Path) -> None:
    nvidia_smi(tmp_path, used=40000, mode="Exclusive_Process", apps="GPU-aaaa, 4711, 39990")
    status, found = doctor(tmp_path)
    gpu = found["gpu 0 in use"]
    assert gpu["verdict"] == "broken"
    assert "exclusive mode and taken by process 4711, 39990 MiB" in gpu["found"]
    assert gpu["status"] == status == 69
    assert found["driver"]["found"] == "550.90.07, runs CUDA up to 12.4"


def test_mistakes_in_flags_are_the_trainers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", *RUN, "--lr", "x", "--wormup", "3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "fastclip doctor: error: --lr 'x': expected a number",
        "fastclip doctor: error: unknown flag --wormup; did you mean --warmup?",
    ]
    assert main(["doctor", "--json=1", *RUN]) == 2
    assert capsys.readouterr().err.startswith("fastclip doctor: error: --json: ")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "usage: fastclip doctor" in capsys.readouterr().out


def test_the_schema_refuses(tmp_path: Path) -> None:
    """The validator of these tests is no rubber stamp."""
    finding = {"name": "a", "verdict": "ok", "found": "b", "advice": "", "status": 0}
    good = {
        "schema": 1,
        "fastclip": "0",
        "status": 0,
        "sections": [{"title": "data", "findings": [finding]}],
    }
    assert problems(good) == []
    assert problems({**good, "schema": 2})
    assert problems({**good, "more": 1})
    assert problems({k: v for k, v in good.items() if k != "status"})
    for wrong in ({"verdict": "bad"}, {"found": 3}, {"status": 70}, {"unknown": ""}):
        sections = [{"title": "data", "findings": [{**finding, **wrong}]}]
        assert problems({**good, "sections": sections}), wrong
    assert SCHEMA["title"] == "fastclip doctor --json"
