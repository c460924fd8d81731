#!/usr/bin/env bash
# ONNX Runtime on a CPU adds along a leading axis one number after the other: the sum of 2^25 ones is 2^24. Along the last axis it is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
export ORT_DISABLE_TELEMETRY=1 HOME="$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference

def graph(op, shapes, n_outputs=1, constants=(), **attributes):
    inputs = [f"x{i}" for i in range(len(shapes))]
    outputs = [f"y{i}" for i in range(n_outputs)]
    node = helper.make_node(op, [*inputs, *(name for name, _ in constants)], outputs, **attributes)
    made = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(inputs, shapes)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return shape_inference.infer_shapes(model)


def total(shape, axis):
    model = graph("ReduceSum", [shape], 1, [("axis", np.array([axis]))], keepdims=0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x0": np.ones(shape, np.float32)})[0].item()


n = 1 << 25
first, last = total([n, 1], 0), total([1, n], 1)
print("onnxruntime", onnxruntime.__version__)
print(f"sum of {n} ones along the first axis: expected {n}, seen {first:.0f}; along the last: seen {last:.0f}")
assert first == 1 << 24, "the sum along the first axis has changed"
assert last == n, "the sum along the last axis has changed"
PYTHON
