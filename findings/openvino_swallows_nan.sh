#!/usr/bin/env bash
# OpenVINO on a CPU turns NaN into ordinary numbers in Relu, Exp and HardSigmoid, depends on the order in Max, and loses the largest number in TopK.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
export ORT_DISABLE_TELEMETRY=1 HOME="$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os

import numpy as np
import onnx
import openvino
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


def run(model, *inputs):
    path = os.path.join(os.environ["HOME"], "graph.onnx")
    onnx.save(model, path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(list(inputs))
    return [np.array(outputs[i]) for i in range(len(compiled.outputs))]


nan, zero = np.full(1, np.nan, np.float32), np.zeros(1, np.float32)
seen = {op: run(graph(op, [[1]]), nan)[0].item() for op in ("Relu", "Exp", "HardSigmoid", "Sigmoid")}
seen["Max(nan, 0)"] = run(graph("Max", [[1], [1]]), nan, zero)[0].item()
seen["Max(0, nan)"] = run(graph("Max", [[1], [1]]), zero, nan)[0].item()
four = np.array([1, np.nan, 3, 2], np.float32)
values = run(graph("TopK", [[4]], 2, [("k", np.array([2]))]), four)[0]
print("openvino", openvino.__version__)
print("of NaN, expected NaN, seen:", seen)
print(f"the 2 largest of {four}: expected nan and 3, seen {values}")
assert seen["Relu"] == 0 and np.isinf(seen["Exp"]) and seen["HardSigmoid"] == 1, "NaN now passes"
assert np.isnan(seen["Sigmoid"])
assert seen["Max(nan, 0)"] == 0 and np.isnan(seen["Max(0, nan)"]), "Max no longer depends on the order"
assert 3 not in values, "TopK now finds the 3"
PYTHON
