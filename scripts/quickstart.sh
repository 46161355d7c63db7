#!/usr/bin/env bash
# Makes .venv, trains a small CLIP on the bundled public-domain pictures with `fastclip train` (CPU or GPU, no
# account, about five minutes on 2 cores), and leaves what came of it in quickstart/:
# index.html, loss_curve.png, retrieval.png, model/ (for OpenCLIP too, with a model card), its evaluation in
# retrieval.json and retrieval.md, logs/.
#   scripts/quickstart.sh
# PYTHON=python3.12 chooses the interpreter (default: python3; 3.10 or newer).
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,7s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."
[[ $# -eq 0 ]] || { echo "scripts/quickstart.sh takes no arguments; see --help" >&2; exit 2; }

scripts/environment.sh dali,demo

rm -rf quickstart/logs/demo # of an earlier quickstart
command=(
    fastclip train
    --model local-dir:fastclip/demo/model
    --train-data 'fastclip/demo/train-{0000..0003}.tar' --dataset-type webdataset
    --val-data fastclip/demo/val-0000.tar --val-num-samples 240
    --aug-cfg scale=0.5,1.0
    --epochs 16 --batch-size 64 --lr 1e-3 --beta2 0.98 --eps 1e-6 --wd 0.2 --warmup 50 --precision fp32
    --decoder dali --workers 2 --log-every-n-steps 8 --save-frequency 0
    --logs quickstart/logs --name demo
)

# As one would type it: words that the shell would change stand in quotes.
shown=
for word in "${command[@]}"; do
    [[ $word == *[^A-Za-z0-9_./:=,-]* ]] && word="'$word'"
    shown+="$word "
done
printf '\n%s\n\n' "$shown"
export PATH=$PWD/.venv/bin:$PATH
"${command[@]}"
rm -rf quickstart/model quickstart/retrieval.{json,md,json.parts} # of an earlier quickstart
fastclip export --run quickstart/logs/demo --to open_clip --out quickstart/model --title 'Demo CLIP'
fastclip eval --checkpoint quickstart/model --task retrieval --data fastclip/demo/val-0000.tar \
    --out quickstart/retrieval.json
.venv/bin/python scripts/quickstart_report.py quickstart/logs/demo quickstart --command "$shown"
