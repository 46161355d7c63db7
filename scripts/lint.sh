#!/usr/bin/env bash
# Lint, format and types, as CI runs them. Needs .venv (scripts/test.sh makes it).
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
