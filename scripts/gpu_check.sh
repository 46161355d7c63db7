#!/usr/bin/env bash
# Checks and times the kernels and the training step on this machine's GPU; needs no internet where torch is installed.
#   scripts/gpu_check.sh [--out FOLDER] [--wheels FOLDER] [--seconds N] [--toy]
# --out       where JSON files go, one after each part (default: bench/results/<date>)
# --wheels    a folder of wheels to use beside what is installed (open_clip_torch, ftfy, inf_cl, memeff,
#             siglip_kernel, ...): for this run only
# --seconds   time for each comparison of speeds (default 240)
# --toy       a few small sizes and a tiny model; on a machine without a GPU the kernels run in Triton's interpreter
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
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

path=.:kernels
if [[ -n $wheels ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$scratch/wheels" "$wheels"/*.whl
    path+=:$scratch/wheels
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

# Smallest first; a part that fails is said at the end and keeps none of the others from running.
failed=()
part() {
    echo "== $1"
    shift
    "$python" "$@" || failed+=("$*")
}
part "patch embedding, attention, biases" -m bench.kernels_on_device --out "$out" "${toy[@]}"
part "losses" -m bench.loss_on_device --out "$out" --seconds "$seconds" "${toy[@]}"
model=()
if [[ ${#toy[@]} -gt 0 ]]; then
    mkdir "$scratch/model"
    cat >"$scratch/model/open_clip_config.json" <<'JSON'
{"model_cfg": {"embed_dim": 32,
 "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
 "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}}}
JSON
    model=(--model "local-dir:$scratch/model" --batch-size 8)
fi
# the step runs torch's own kernels on a CPU, where interpreting every launch would take for ever
unset TRITON_INTERPRET
part "training step" -m bench.step_on_device --out "$out" --seconds "$seconds" "${model[@]}" "${toy[@]}"

echo "== results in $out"
if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "all parts done, every result right"
