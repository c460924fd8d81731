"""Attention in blocks of queries: the same graph, whose memory grows with the number of steps and not with its square.

Every value whose last two axes are the same number of steps is computed for some rows at a time, inside a Loop, from
what the rows need to the operator that makes it narrow again: a product or a reduction over its last axis. Rows do not
depend on each other, so the numbers are those of the graph it is made of, up to the order in which a matrix product
adds. A product whose left factor is transposed sums over the rows: it is added up from block to block. What two loops
need is computed in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

ROWS = 256
"""Most rows of a block."""

_ROWS_PER_HEAD = 64
"""Heads that attend side by side share the rows of a block, down to this: products of fewer rows take longer."""

_Shapes = dict[str, tuple[str | int, ...]]  # by name of the value; a free axis has a name, an unknown one is 0

_BY_ELEMENT = {
    *("Abs", "Add", "Cast", "Clip", "Cos", "Div", "Erf", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Relu"),
    *("Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where", "And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less"),
    *("LessOrEqual", "Not", "Or"),
}
_REDUCE = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"}
_SOFTMAX = {"Softmax", "LogSoftmax"}


def in_blocks(model: onnx.ModelProto, rows: int = ROWS) -> onnx.ModelProto | None:
    """The same graph with attention in blocks of at most ``rows`` queries.

    Parameters
    ----------
    model
        a scorer graph as ``scorer_onnx`` writes it

    Returns
    -------
    ModelProto
        None where nothing has two axes of steps, or where an operator mixes the rows of what has
    """
    graph = model.graph
    shapes = _shapes(model)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    wide = _wide(shapes)
    if wide & {value.name for value in graph.output}:
        return None
    made_by = {output: node for node in graph.node for output in node.output}
    turned = {node.output[0] for node in graph.node if wide & set(node.input) and _turns(node)}

    def last_axis(node: NodeProto) -> bool:
        """Whether a softmax or a reduction goes along the last axis alone."""
        rank = len(shapes[node.input[0]])
        if node.op_type in _SOFTMAX:
            return _attributes(node).get("axis", -1) in (-1, rank - 1)
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and axes.tolist() in ([-1], [rank - 1])

    def by_row(node: NodeProto) -> list[str] | None:
        """Inputs of which a block needs its own rows and no others; None where the operator mixes rows."""
        names, result = [name for name in node.input if name], node.output[0]
        if result in turned:
            return None if names[0] in turned else names
        if node.op_type == "MatMul":
            if names[1] in wide or (names[0] in turned and result in wide):
                return None
            return names if names[0] in turned else names[:1]
        if turned & set(names):
            return None
        if node.op_type in _REDUCE | _SOFTMAX:
            return names[:1] if last_axis(node) else None
        if node.op_type == "Unsqueeze":
            axes = constants.get(names[1], np.array(-1))
            return names[:1] if ((axes >= 0) & (axes < len(shapes[result]) - 2)).all() else None
        if node.op_type not in _BY_ELEMENT or any(0 in shapes.get(name, (0,)) for name in names):
            return None
        # What has an axis of rows, whatever the exporter calls it: it has two names for some sizes.
        return [name for name in names if shapes[name][-2:-1] not in ((), (1,))]

    nodes: list[NodeProto] = []
    for node in graph.node:
        if wide & set(node.output) or not wide & set(node.input):
            nodes.append(node)
            continue
        cone, sliced, pending = [node], set(), [node]
        while pending:
            if (names := by_row(pending.pop())) is None:
                return None
            for name in names:
                if name not in wide:
                    sliced.add(name)
                elif (above := made_by[name]) not in cone:
                    cone.append(above)
                    pending.append(above)
        row_axis = len(shapes[node.input[0]]) - 2
        width = shapes[node.output[0]][row_axis + 1 :]
        if not sliced or not all(isinstance(dim, int) and dim > 0 for dim in width):
            return None
        if node.op_type == "MatMul" and len(width) != 1:  # the right factor has more axes than the left one
            return None
        adds_up = node.input[0] in turned
        if adds_up and shapes[node.output[0]] != shapes[node.input[1]]:
            return None
        n_heads = math.prod(dim for dim in shapes[node.input[0]][:-2] if isinstance(dim, int))
        inside = [each for each in graph.node if each in cone]
        most = min(rows, max(rows // n_heads, _ROWS_PER_HEAD))
        nodes += _loop(inside, sorted(sliced), shapes, row_axis, most, adds_up=adds_up)
    if len(nodes) == len(graph.node):
        return None
    blocked = onnx.ModelProto()
    blocked.CopyFrom(model)
    del blocked.graph.node[:], blocked.graph.value_info[:]
    blocked.graph.node.extend(_needed(nodes, {value.name for value in graph.output}))
    return blocked


def has_squares(model: onnx.ModelProto) -> bool:
    """Whether some value has two axes of steps, so that memory grows with their square."""
    return bool(_wide(_shapes(model)))


def _wide(shapes: _Shapes) -> set[str]:
    return {name for name, s in shapes.items() if len(s) > 1 and s[-2] == s[-1] and isinstance(s[-1], str)}


def _shapes(model: onnx.ModelProto) -> _Shapes:
    """Shapes of all values. Where the exporter lost the names of free axes in a reshape, they are found again."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    known = [value for value in bare.graph.value_info if 0 not in _shape(value)]
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(known)
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {value.name: _shape(value) for value in values if value.type.tensor_type.HasField("shape")}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _turns(node: NodeProto) -> bool:
    """Whether an operator exchanges the last two axes and leaves the others."""
    perm = _attributes(node).get("perm", ())
    return node.op_type == "Transpose" and list(perm) == [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _loop(
    inside: list[NodeProto], sliced: list[str], shapes: _Shapes, row_axis: int, most: int, *, adds_up: bool
) -> list[NodeProto]:
    """Nodes that compute the output of the last of the nodes ``inside``, at most ``most`` rows at a time.

    Its rows are along ``row_axis``, and blocks are joined there; or ``adds_up``, and blocks are summands.
    """
    output = inside[-1].output[0]
    rank = len(shapes[output])

    def own(name: str) -> str:
        return f"{output}/{name}"

    def whole(name: str, *numbers: int) -> NodeProto:
        return helper.make_node(
            "Constant", [], [own(name)], value=helper.make_tensor(own(name), TensorProto.INT64, [len(numbers)], numbers)
        )

    def node(kind: str, inputs: Iterable[str], result: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, list(inputs), [own(result)], name=own(result), **attributes)

    def value(name: str, kind: int, shape: list[None] | list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    renamed = {name: own(name) for each in inside for name in each.output} | {name: own(name) for name in sliced}
    body = [
        node("Mul", ["block", own("block_rows")], "start"),
        node("Add", [own("start"), own("block_rows")], "end"),
        node("Slice", [own("rows"), own("start"), own("end")], "index"),
        *(node("Gather", [name, own("index")], name, axis=len(shapes[name]) - 2) for name in sliced),
    ]
    for each in inside:
        copy = NodeProto()
        copy.CopyFrom(each)
        copy.name = own(each.name)
        for names in (copy.input, copy.output):
            names[:] = [renamed.get(name, name) for name in names]
        body.append(copy)
    body.append(helper.make_node("Identity", ["go_on"], [own("goes_on")]))
    carried = []
    result = own(output)
    if adds_up:
        carried = [value(own("so_far"), TensorProto.FLOAT, [None] * rank)]
        result = own("sum")
        body.append(node("Add", [own("so_far"), own(output)], "sum"))
    loop_body = helper.make_graph(
        body,
        own("rows"),
        [value("block", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, []), *carried],
        [value(own("goes_on"), TensorProto.BOOL, []), value(result, TensorProto.FLOAT, [None] * rank)],
    )
    before = [
        whole("0", 0), whole("1", 1), whole("most", most),
        helper.make_node("Constant", [], [own("zero")], value_int=0),
        helper.make_node("Constant", [], [own("one")], value_int=1),
        node("Shape", [sliced[0]], "n_rows", start=-2, end=-1),
        # Blocks of equal size: ceil(n_rows / most) of them. Rows are at least one, so cutting off rounds as it should.
        node("Sub", [own("n_rows"), own("1")], "last"),
        node("Div", [own("last"), own("most")], "full"),
        node("Add", [own("full"), own("1")], "n_blocks"),
        node("Div", [own("last"), own("n_blocks")], "part"),
        node("Add", [own("part"), own("1")], "block_rows"),
        node("Squeeze", [own("n_blocks"), own("0")], "n_blocks_scalar"),
    ]  # fmt: skip
    if adds_up:  # the last block ends where the rows end
        return [
            *before,
            node("Squeeze", [own("n_rows"), own("0")], "n_rows_scalar"),
            node("Range", [own("zero"), own("n_rows_scalar"), own("one")], "rows"),
            node("Shape", [inside[-1].input[1]], "shape"),
            node("ConstantOfShape", [own("shape")], "nothing"),
            helper.make_node(
                "Loop", [own("n_blocks_scalar"), "", own("nothing")], [output], own("loop"), body=loop_body
            ),
        ]
    # Blocks that are joined have the same size: the last one takes the last row again, and the surplus is cut off.
    to_rows = [
        *range(1, row_axis + 1),
        0,
        *range(row_axis + 1, rank + 1),
    ]  # [block, ..., row, n] -> [..., block, row, n]
    return [
        *before,
        whole("axis", row_axis),
        node("Mul", [own("n_blocks"), own("block_rows")], "n_taken"),
        node("Squeeze", [own("n_taken"), own("0")], "n_taken_scalar"),
        node("Range", [own("zero"), own("n_taken_scalar"), own("one")], "counted"),
        node("Min", [own("counted"), own("last")], "rows"),
        helper.make_node("Loop", [own("n_blocks_scalar"), ""], [own("blocks")], name=own("loop"), body=loop_body),
        node("Transpose", [own("blocks")], "in_order", perm=to_rows),
        whole("shape", *[0] * row_axis, -1, *(int(dim) for dim in shapes[output][row_axis + 1 :])),
        node("Reshape", [own("in_order"), own("shape")], "joined"),
        helper.make_node("Slice", [own("joined"), own("0"), own("n_rows"), own("axis")], [output]),
    ]


def _needed(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes that lead to the wanted values, in their order."""
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted = wanted | _reads(node)
    return kept[::-1]


def _reads(node: NodeProto) -> set[str]:
    """Values a node takes, with those its inner graphs take from around it."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names |= {name for inner in attribute.g.node for name in _reads(inner)}
    return names
