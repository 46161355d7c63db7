#!/usr/bin/env bash
# Checks and times the loss kernels on this machine's GPU; needs no internet where torch is installed.
#   scripts/gpu_check.sh [--out FOLDER] [--wheels FOLDER] [--seconds N] [--toy]
# --out       where JSON files go, one after each part (default: bench/results/<date>)
# --wheels    a folder of wheels to use beside what is installed (open_clip_torch, inf_cl, memeff,
#             siglip_kernel, ...): for this run only
# --seconds   time for the comparison of speeds (default 240)
# --toy       a few small sizes; on a machine without a GPU the kernels run in Triton's interpreter
# PYTHON=python3.12 chooses the interpreter (default: .venv/bin/python if there is one, else python3).
# Exit status: 0 where every result is right, whatever the speed.
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,10s/^# //p' "$0"
    exit 0
fi
here=$PWD
cd "$(dirname "$0")/.."
out=bench/results/$(date +%Y-%m-%d) wheels= seconds=240 toy=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --out) out=$(cd "$here" && realpath -m "$2"); shift 2 ;;
        --wheels) wheels=$(cd "$here" && realpath -m "$2"); shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --toy) toy=(--toy); shift ;;
        *) echo "scripts/gpu_check.sh: unknown argument $1; see --help" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
mkdir -p "$out"

path=.:kernels
if [[ -n $wheels ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl
    path+=:$site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
if [[ ${#toy[@]} -gt 0 ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    export TRITON_INTERPRET=1
fi

echo "== environment"
"$python" - "$out/environment.json" <<'PYTHON'
import json, sys, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
for i in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(i)
    found["gpus"].append({"name": properties.name, "bytes": properties.total_memory,
                          "multiprocessors": properties.multi_processor_count})
json.dump(found, open(sys.argv[1], "w"), indent=1)
print(found)
PYTHON

echo "== losses"
status=0
"$python" -m bench.loss_on_device --out "$out" --seconds "$seconds" "${toy[@]}" || status=$?
echo "== results in $out"
exit "$status"
