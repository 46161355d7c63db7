#!/usr/bin/env bash
# CLIP_benchmark 1.6.2, which `fastclip eval` is compared with, fails with NumPy 2.4 (its top-k accuracy, like
# open_clip's, makes a float of an array). This makes .venv-clip-benchmark, which takes everything but NumPy and what
# CLIP_benchmark needs beside it (and pyarrow, for the suite of `fastclip eval`) from .venv. Run scripts/test.sh, or
# make .venv by hand, first.
set -euo pipefail
if [[ "${1:-}" == "--help" ]]; then
    sed -n '2,5s/^# //p' "$0"
    exit 0
fi
cd "$(dirname "$0")/.."

[[ -x .venv/bin/python ]] || { echo "scripts/clip_benchmark_env.sh: no .venv here; run scripts/test.sh first" >&2; exit 66; }
[[ -x .venv-clip-benchmark/bin/python ]] && exit 0

shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf .venv-clip-benchmark.partial # left by a run that was interrupted
.venv/bin/python -m venv --without-pip .venv-clip-benchmark.partial
own=$(.venv-clip-benchmark.partial/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$shared" >"$own/shared_with_venv.pth"
.venv/bin/python -m pip install --quiet --no-deps --target "$own" \
    clip-benchmark==1.6.2 'numpy<2.3' scikit-learn joblib cloudpickle loky threadpoolctl narwhals \
    requests urllib3 idna charset-normalizer certifi pycocoevalcap pycocotools pyarrow
mv .venv-clip-benchmark.partial .venv-clip-benchmark # a half-made environment never has the final name
