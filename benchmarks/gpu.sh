#!/usr/bin/env bash
# What a GPU gives: correctness against the CPU, speed, memory, NCCL, and a training run for the rest of the time.
#
#     [START=ENCODER] bash benchmarks/gpu.sh [PHOTOGRAPHS] [OUT]
#
# PHOTOGRAPHS holds the folders `pristine`, `pristine_more` and `authentic`, or some of them; without it, the sample
# photographs. The training is by the profile `gpu`, from scratch or on from START (`bundled`: the package's own). OUT
# gets results.json, after each part, then history.jsonl and the encoder in parts (`python benchmarks/gpu.py --join OUT
# --out FILE`). MINUTES (9) bounds the whole command; PARTS ("agreement step bank torchrun") are what comes before the
# training, and may be empty; SETTINGS ("pretrain.lr=2e-4") change the profile; WORK is a folder that keeps the
# distorted pictures.
# Needs a Python with torch, torchvision, OpenCV, pandas, pyarrow, Pillow, SciPy, scikit-image and safetensors, and a C
# compiler, no network and no installation of this project; of its other needs, imagecodecs and simplejpeg, wheels are
# taken from the folder `.whl`. Without a CUDA device it is a small run on the CPU.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
photographs=${1:+$(cd "$here" && realpath -m "$1")}
out=${2:+$(cd "$here" && realpath -m "$2")}
out=${out:-${OUT:-runs/gpu}}
work=${WORK:+$(cd "$here" && realpath -m "$WORK")}
case ${START:-} in
bundled) start=contrique/bundled/encoder.safetensors ;;
*) start=${START:+$(cd "$here" && realpath "$START")} ;;
esac
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
if compgen -G ".whl/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    PYTHONPATH=$PYTHONPATH:$site
fi
temporary=$(mktemp -d)
trap 'rm -rf "$temporary" "${site:-}"' EXIT
"$python" benchmarks/gpu.py ${photographs:+--data "$photographs"} --out "$out" --work "${work:-$temporary}" \
    --minutes "${MINUTES:-9}" ${PARTS+--parts $PARTS} ${start:+--encoder "$start"} ${SETTINGS:+--set $SETTINGS}
ls -l "$out"
