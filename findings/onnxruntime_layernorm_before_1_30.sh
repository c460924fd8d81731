#!/usr/bin/env bash
# ONNX Runtime 1.26.0 normalizes rows wrongly whose mean is large beside their spread; 1.30.0 does it right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export ORT_DISABLE_TELEMETRY=1 HOME="$folder"
cat > "$folder/norm.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 256])
vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256]) for name in ("scale", "shift")]
out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 256])
node = helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["y"], axis=-1)
model = helper.make_model(
    helper.make_graph([node], "norm", [rows, *vector], [out]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
errors = []
for mean in (1, 300, 3000):
    x = (np.random.default_rng(0).standard_normal((4, 256)) + mean).astype(np.float32)
    y = session.run(None, {"x": x, "scale": np.ones(256, np.float32), "shift": np.zeros(256, np.float32)})[0]
    exact = x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    errors.append(float(np.abs(y - exact).max()))
    print(f"onnxruntime {onnxruntime.__version__}: mean {mean}, spread 1: largest error {errors[-1]:.1e}")
right = all(error < 1e-3 for error in errors)
assert right == (sys.argv[1] == "right"), "this release behaves otherwise now"
PYTHON
for release in "1.26.0 wrong" "1.30.0 right"; do
  set -- $release
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$1" onnx==1.20.0 "numpy==2.3.5"
  "$folder/$1/bin/python" "$folder/norm.py" "$2"
done
