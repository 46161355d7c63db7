#!/usr/bin/env bash
# Checks and times the kernels, the training step and the trainer on this machine's GPU, smallest first; resumable;
# needs no internet where torch is installed. Exit status: 0 where every result is right, whatever the speed.
#   scripts/gpu_check.sh [--out FOLDER] [--wheels FOLDER] [--seconds N] [--again] [--toy]
# --out       where JSON files go, one after each part (default: bench/results/<date>); started again with the same
#             one, it goes on where it was stopped
# --wheels    a folder of wheels to use beside what is installed (open_clip_torch, ftfy, pytest_benchmark, inf_cl,
#             memeff, siglip_kernel, ...): for this run only
# --seconds   time for each comparison of speeds (default 240; 60 makes ten minutes of it, 600 an hour)
# --again     redo what is done
# --toy       a few small sizes and a tiny model; on a machine without a GPU the kernels run in Triton's interpreter
# PYTHON=python3.12 chooses the interpreter (default: .venv/bin/python if there is one, else python3).
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,12s/^# //p' "$0"
    exit 0
fi
root=$(cd "$(dirname "$0")/.." && pwd)
wheels= rest=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --wheels) wheels=${2:?--wheels needs a folder}; shift 2 ;;
        *) rest+=("$1"); shift ;;
    esac
done
python=${PYTHON:-$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}
path=$root:$root/kernels
if [[ -n $wheels ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$scratch" "$wheels"/*.whl
    path+=:$scratch
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
# in the background and waited for, so that a scheduler's signal reaches it while this shell waits
"$python" -m bench.gpu_kit "${rest[@]}" &
trap 'kill -TERM $! 2>/dev/null' TERM INT
wait $! && status=0 || status=$?
exit "$status"
