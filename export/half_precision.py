"""ONNX in single precision in, strongly typed mixed precision out; which parts stay in single precision is data.

A half-precision graph keeps its inputs and outputs (float32, and int64 lengths), so callers do not change. Inside it,
four parts always stay in float32: what depends on lengths and positions alone (half precision counts exactly to 2048
only), the normalisation of raw features (their scale is the caller's), the casts the graph had, and its end from the
last product on (a score rounded to half ties with its neighbours, and the product is small). All else is half unless it
lies in an *island*.

An island is named ``<part>:<kind>``: a part is a direct child of the model, or ``forward`` for arithmetic of its own,
and a kind one of ``products``, ``recurrence``, ``softmax``, ``norms``, ``mixing``. ``islands`` lists those of a graph.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsum_runtime.export.onnx_from_torch import NAME_SCOPES
from vsum_runtime.runtime.errors import ExportError, InputError

_KINDS = {
    "products": {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"},
    "recurrence": {"LSTM", "GRU", "RNN"},
    "softmax": {"Softmax", "LogSoftmax", "Exp", "Log"},
    "norms": {"LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}
    | {"ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "Sqrt", "Pow", "Reciprocal"},
}
_COST_STEPS = 320
ISLANDS = Path(__file__).with_name("fp16_islands.json")
"""Islands found for each architecture, and how: ``python -m vsum_runtime.export.find_islands`` writes it."""

_HALF = np.finfo(np.float16)


def half_precision(model: onnx.ModelProto, islands: Collection[str]) -> onnx.ModelProto:
    """A copy of a float32 scorer that computes in half precision outside the islands.

    Raises
    ------
    InputError
        an island the graph does not have
    ExportError
        what came out is not a valid graph
    """
    known = islands_of(model)
    if unknown := sorted(set(islands) - set(known)):
        raise InputError(f"islands: unknown {', '.join(unknown)}; this graph has {', '.join(sorted(known))}")
    single = _always_single(model).union(*(known[name] for name in islands))
    half = _converted(model, single)
    try:
        onnx.checker.check_model(half, full_check=True)
    except Exception as error:
        raise ExportError(f"the graph cannot be converted to half precision: {error}") from error
    return half


def _converted(model: onnx.ModelProto, single: Collection[str]) -> onnx.ModelProto:
    """Every float32 value gets one home type, that of the node that makes it, and a cast where a user has another.

    Public converters were tried: they cast the graph's inputs to half before a float32 node sees them, and round at
    every node inside an island, so that a graph of islands alone differs from float32.
    """
    weights = {weight.name: weight for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}
    home = dict.fromkeys(_float_values(model), TensorProto.FLOAT)
    results = {value.name for value in model.graph.output}
    twins: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    used: set[str] = set()

    def cast(name: str, to: int, twin: str) -> str:
        nodes.append(helper.make_node("Cast", [name], [twin], name=f"cast_{twin}", to=to))
        return twin

    halves = []
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        wanted = TensorProto.FLOAT if node.name in single else TensorProto.FLOAT16
        for index, name in enumerate(node.input):
            if name in home and home[name] != wanted:
                if name not in twins:
                    twins[name] = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
                    if name in weights:
                        halves.append(_half_weight(weights[name], twins[name]))
                    else:
                        cast(name, wanted, twins[name])
                node.input[index] = twins[name]
        used.update(node.input)
        nodes.append(node)
        if wanted == TensorProto.FLOAT16:
            for index, name in enumerate(node.output):
                if name in results and name in home:
                    node.output[index], twins[name] = f"{name}_half", f"{name}_half"
                    cast(f"{name}_half", TensorProto.FLOAT, name)
                elif name in home:
                    home[name] = TensorProto.FLOAT16

    graph = onnx.GraphProto(name=model.graph.name)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.node.extend(nodes)
    graph.initializer.extend(weight for weight in [*model.graph.initializer, *halves] if weight.name in used)
    half = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, graph=graph)
    half.opset_import.extend(model.opset_import)
    return half


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 values."""
    graph = onnx.shape_inference.infer_shapes(_skeleton(model)).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats | {weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT}


def _half_weight(weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Rounded; a mask's -1e9 becomes the lowest finite value, and an epsilon does not become zero."""
    value = numpy_helper.to_array(weight)
    finite = np.isfinite(value)
    half = np.where(finite, np.clip(value, -_HALF.max, _HALF.max), value).astype(np.float16)
    if half.size == 1 and np.all(half == 0) and np.any(value != 0):
        half = (np.sign(value) * _HALF.smallest_subnormal).astype(np.float16)
    return numpy_helper.from_array(half, name)


def islands_of(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Island -> names of its nodes, for every island the graph has; the dearest to leave in float32 first."""
    fixed = _always_single(model)
    members: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.name not in fixed:
            kind = next((kind for kind, operators in _KINDS.items() if node.op_type in operators), "mixing")
            members.setdefault(f"{_part(node)}:{kind}", set()).add(node.name)
    cost = _costs(model)
    return dict(sorted(members.items(), key=lambda item: (-sum(cost[name] for name in item[1]), item[0])))


def find_islands(model: onnx.ModelProto, passes: Callable[[onnx.ModelProto], bool]) -> list[str]:
    """The islands a model needs so that ``passes(half-precision graph)`` holds, leaving as little as possible.

    Starts from none, which some models need. Where that fails, it starts from all, the dearest first, and gives them up
    by bisection: a group as a whole where the graph passes without it, else each half of it. Every island of the result
    was tried on its own, and without it the graph did not pass.

    Raises
    ------
    ExportError
        the graph does not pass even with every island
    """
    if passes(half_precision(model, [])):
        return []
    kept = list(islands_of(model))
    if not passes(half_precision(model, kept)):
        raise ExportError("half precision is out of reach: with every island in float32 the gate still fails")

    def give_up(group: list[str], *, known_to_fail: bool) -> bool:
        nonlocal kept
        without = [island for island in kept if island not in group]
        if not known_to_fail and passes(half_precision(model, without)):
            kept = without
            return True
        if len(group) > 1:
            middle = len(group) // 2
            first_is_gone = give_up(group[:middle], known_to_fail=False)
            give_up(group[middle:], known_to_fail=first_is_gone)  # then this half is all that is left of the group
        return False

    give_up(list(kept), known_to_fail=True)
    return sorted(kept)


def islands_on_record(architecture: str) -> list[str] | None:
    """Islands found for an architecture; None where it has not been searched."""
    records = json.loads(ISLANDS.read_text(encoding="utf-8"))["architectures"]
    return list(records[architecture]["islands"]) if architecture in records else None


def emulated(half: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision graph as float32 operators that round every value to half: what the CPU can measure it by.

    ONNX Runtime has few half-precision operators on the CPU; it runs whole chains of them in float32 and rounds at
    their ends, which hides errors (three operators that lose everything in half precision came out exact).
    """
    inferred = onnx.shape_inference.infer_shapes(_skeleton(half)).graph
    halves = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    graph = onnx.GraphProto(name=half.graph.name)
    graph.input.extend(half.graph.input)
    graph.output.extend(half.graph.output)
    for weight in half.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            single = numpy_helper.to_array(weight).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(single, weight.name))
        else:
            graph.initializer.append(weight)
    for original in half.graph.node:
        node = graph.node.add()
        node.CopyFrom(original)
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        for index, name in enumerate(original.output):
            if name in halves:
                node.output[index] = f"{name}_unrounded"
                for source, target, to in (
                    (f"{name}_unrounded", f"{name}_rounded", TensorProto.FLOAT16),
                    (f"{name}_rounded", name, TensorProto.FLOAT),
                ):
                    graph.node.append(helper.make_node("Cast", [source], [target], name=f"round_{target}", to=to))
    model = onnx.ModelProto(ir_version=half.ir_version, graph=graph)
    model.opset_import.extend(half.opset_import)
    return model


def _always_single(model: onnx.ModelProto) -> set[str]:
    """Nodes that never compute in half precision."""
    depends = {"features"}
    names = _end(model)
    for node in model.graph.node:
        if node.op_type != "Shape" and depends.intersection(node.input):
            depends.update(node.output)
            if _part(node) and node.op_type != "Cast":
                continue
        names.add(node.name)
    return names


def _end(model: onnx.ModelProto) -> set[str]:
    """Nodes from the last product of each output on."""
    makers = {name: node for node in model.graph.node for name in node.output}
    wanted = [value.name for value in model.graph.output]
    names: set[str] = set()
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            if node.op_type not in _KINDS["products"] | _KINDS["recurrence"]:
                wanted.extend(node.input)
    return names


def _part(node: onnx.NodeProto) -> str:
    """Direct child of the model a node belongs to, ``forward`` for the model itself, "" for what surrounds it."""
    scopes = next((p.value for p in node.metadata_props if p.key == NAME_SCOPES), "['model', '']")
    path = [scope for scope in ast.literal_eval(scopes)[:-1] if scope == "model" or scope.startswith("model.")]
    if not path:
        return ""
    return "forward" if path[-1] == "model" else str(path[-1].split(".")[1])


def _costs(model: onnx.ModelProto) -> dict[str, float]:
    """Node -> multiplications and values written, for one video of 320 steps; unknown axes count as 320."""
    fixed = _skeleton(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = {"batch": 1}.get(dim.dim_param, _COST_STEPS)
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value or _COST_STEPS for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    shapes |= {weight.name: list(weight.dims) for weight in model.graph.initializer}
    return {node.name: _cost(node, shapes) for node in model.graph.node}


def _cost(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> float:
    written = sum(prod(shapes.get(name, [_COST_STEPS])) for name in node.output if name)
    if node.op_type == "MatMul":
        return float(written * (shapes.get(node.input[0]) or [1])[-1])
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        return float(written * prod(shapes.get(node.input[1], [1])[1:]))
    if node.op_type in _KINDS["recurrence"]:
        return float(_COST_STEPS * sum(prod(shapes.get(name, [1])) for name in node.input[1:3]))
    return float(written)


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights declared as inputs, so that shapes are inferred without copying them."""
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        if prod(weight.dims) > 64:
            graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
        else:
            graph.initializer.append(weight)
    light = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    light.opset_import.extend(model.opset_import)
    return light
