"""The reference trainer's own environment: it needs an older webdataset than ours."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-reference" / "bin" / "python"
MISSING = "no .venv-reference here: run scripts/reference_env.sh first"


def is_there() -> bool:
    return PYTHON.exists()
