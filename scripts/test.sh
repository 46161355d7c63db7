#!/usr/bin/env bash
# Makes the test environments (.venv, .venv-reference) and runs lint and tests; needs no GPU and no data.
#   scripts/test.sh              the fast tests, as CI (about 10 minutes on 2 cores, half of it installing)
#   scripts/test.sh --all        the slow ones too (up to 90 minutes)
#   scripts/test.sh -k parity    further arguments go to pytest
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,5s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."
scripts/environment.sh dali,dev
scripts/reference_env.sh
scripts/lint.sh

# One torch thread per test process: the processes share the cores.
export OMP_NUM_THREADS=1
if [[ "${1:-}" == "--all" ]]; then
    shift
    exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
fi
exec .venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow" "$@"
