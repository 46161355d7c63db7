#!/usr/bin/env bash
# Makes .venv with fastclip, its kernels and the extras named on the command line (comma-separated), both packages
# editable, versions from scripts/constraints.txt. Does nothing where that was done already.
#   scripts/environment.sh dali,dev
# PYTHON=python3.12 chooses the interpreter (default: python3; 3.10 or newer).
set -euo pipefail
if [[ "${1:-}" == "--help" || $# -ne 1 ]]; then
    sed -n '2,5s/^# //p' "$0"
    [[ "${1:-}" == "--help" ]] && exit 0 || exit 2
fi
cd "$(dirname "$0")/.."
extras=$1
stamp=.venv/.installed
wanted="$extras $(cat pyproject.toml kernels/pyproject.toml scripts/constraints.txt | sha256sum)"
[[ -f $stamp && "$(cat $stamp)" == "$wanted" ]] && exit 0

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "scripts/environment.sh: $python is older than 3.10; set PYTHON to a newer one" >&2; exit 69; }
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
echo "Installing fastclip[$extras] into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint scripts/constraints.txt -e ./kernels -e ".[$extras]"
echo "$wanted" >$stamp
