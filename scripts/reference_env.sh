#!/usr/bin/env bash
# The reference trainer (open_clip_train of open_clip_torch 3.3.0) needs webdataset 0.2.86; fastclip needs 1.x.
# This makes .venv-reference, which takes everything but webdataset from .venv. Run scripts/test.sh, or make .venv
# by hand, first.
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,4s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."

[[ -x .venv/bin/python ]] || { echo "scripts/reference_env.sh: no .venv here; run scripts/test.sh first" >&2; exit 66; }
[[ -x .venv-reference/bin/python ]] && exit 0

shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m venv --without-pip .venv-reference.partial
own=$(.venv-reference.partial/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$shared" >"$own/shared_with_venv.pth"
.venv/bin/python -m pip install --quiet --no-deps --target "$own" webdataset==0.2.86
mv .venv-reference.partial .venv-reference # a half-made environment never has the final name
