#!/usr/bin/env bash
# Collects what a machine without network and with only CUDA, Python 3.12 and PyTorch lacks, as wheels in pieces of at
# most 60 MB: run.sh --wheels puts the pieces together. Run it where pip works:
#
#     benchmarks/gpu/prepare.sh WHEELS [PACKAGE==VERSION ...]
#
# Without packages: ONNX Runtime for CUDA 13 and TensorRT-RTX.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
wheels=$1
shift
[ $# -gt 0 ] || set -- onnxruntime-gpu==1.31.1 onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 \
    tensorrt-rtx-cu13-bindings==1.7.1.116
piece_bytes=$((60 * 1000 * 1000))
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done

mkdir -p "$wheels"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$wheels" "$@"
for wheel in "$wheels"/*.whl; do
    if [ "$(stat -c %s "$wheel")" -gt "$piece_bytes" ]; then
        rm -f "$wheel".part-*
        split --bytes="$piece_bytes" --numeric-suffixes --suffix-length=2 "$wheel" "$wheel.part-"
        rm "$wheel"
    fi
done
(cd "$wheels" && sha256sum -- *.whl* >SHA256SUMS.tmp && mv SHA256SUMS.tmp SHA256SUMS)
ls -l "$wheels"
