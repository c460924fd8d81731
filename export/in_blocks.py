"""Attention in blocks of queries: the same graph, whose memory grows with the number of steps and not with its square.

Every value with two axes of time is computed for some rows at a time, inside a Loop, from what the rows need to the
operator that makes it narrow again: a product or a reduction over its last axis. Rows do not depend on each other, so
the numbers are those of the graph it is made of, up to the order in which a matrix product adds. What two loops need is
computed in both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

ROWS = 256
"""Most rows of a block."""

_BY_ELEMENT = {
    *("Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid"),
    *("Sqrt", "Sub", "Tanh", "Where", "And", "Equal", "Greater", "Less", "LessOrEqual", "Not", "Or"),
}
_REDUCE = {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"}
_SOFTMAX = {"Softmax", "LogSoftmax"}


def in_blocks(model: onnx.ModelProto, rows: int = ROWS) -> onnx.ModelProto | None:
    """The same graph with attention in blocks of at most ``rows`` queries.

    Parameters
    ----------
    model : a scorer graph with the axis names and inner shapes that ``scorer_onnx`` writes

    Returns
    -------
    ModelProto   None where nothing has two axes of time, or where an operator mixes the rows of what has
    """
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes: dict[str, tuple[str | int, ...]] = {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    wide = {name for name, shape in shapes.items() if shape[-2:] == ("time", "time")}
    if wide & {value.name for value in graph.output}:
        return None
    made_by = {output: node for node in graph.node for output in node.output}

    def last_axis(node: NodeProto) -> bool:
        """Whether a softmax or a reduction goes along the last axis alone."""
        rank = len(shapes[node.input[0]])
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type in _SOFTMAX:
            return given.get("axis", -1) in (-1, rank - 1)
        axes = constants.get(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and axes.tolist() in ([-1], [rank - 1])

    def operands(node: NodeProto) -> tuple[list[str], list[str]] | None:
        """Inputs of which only the block's rows are needed, and those needed whole; None where rows are mixed."""
        if node.op_type == "MatMul":
            left, right = node.input
            return None if right in wide else ([left], [right])
        if node.op_type in _REDUCE | _SOFTMAX:
            return ([node.input[0]], list(node.input[1:])) if last_axis(node) else None
        if node.op_type not in _BY_ELEMENT or any(name not in shapes for name in node.input if name):
            return None
        by_row = [name for name in node.input if name and shapes[name][-2:-1] == ("time",)]
        return by_row, [name for name in node.input if name and name not in by_row]

    nodes: list[NodeProto] = []
    for node in graph.node:
        if wide & set(node.output) or not wide & set(node.input):
            nodes.append(node)
            continue
        cone, sliced, pending = [node], set(), [node]
        while pending:
            if (found := operands(pending.pop())) is None:
                return None
            for name in found[0]:
                if name not in wide:
                    sliced.add(name)
                elif (above := made_by[name]) not in cone:
                    cone.append(above)
                    pending.append(above)
        row_axis = len(shapes[node.input[0]]) - 2
        if not all(isinstance(dim, int) for dim in shapes[node.output[0]][row_axis + 1 :]):
            return None
        inside = [each for each in graph.node if each in cone]
        nodes += _loop(inside, node.output[0], row_axis, sorted(sliced), shapes, rows)
    if len(nodes) == len(graph.node):
        return None
    blocked = onnx.ModelProto()
    blocked.CopyFrom(model)
    del blocked.graph.node[:], blocked.graph.value_info[:]
    blocked.graph.node.extend(_needed(nodes, {value.name for value in graph.output}))
    return blocked


def _loop(
    inside: list[NodeProto],
    output: str,
    row_axis: int,
    sliced: list[str],
    shapes: dict[str, tuple[str | int, ...]],
    rows: int,
) -> list[NodeProto]:
    """Nodes that compute ``output``, whose rows are along ``row_axis``, block by block with the nodes ``inside``."""
    rank = len(shapes[output])
    after = [dim for dim in shapes[output][row_axis + 1 :] if isinstance(dim, int)]

    def own(name: str) -> str:
        return f"{output}/{name}"

    def whole(name: str, *numbers: int) -> NodeProto:
        return helper.make_node(
            "Constant", [], [own(name)], value=helper.make_tensor(own(name), TensorProto.INT64, [len(numbers)], numbers)
        )

    def node(kind: str, inputs: Iterable[str], result: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, list(inputs), [own(result)], name=own(result), **attributes)

    renamed = {name: own(name) for each in inside for name in each.output} | {name: own(name) for name in sliced}
    body = [
        # The last block would end after the last step: it takes that one again, and the surplus is cut off below.
        node("Mul", ["block", own("block_rows")], "start"),
        node("Add", [own("start"), own("row_range")], "wanted"),
        node("Min", [own("wanted"), own("last")], "index"),
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
    free = [None] * rank
    loop_body = helper.make_graph(
        body,
        own("rows"),
        [
            helper.make_tensor_value_info("block", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(own("goes_on"), TensorProto.BOOL, []),
            helper.make_tensor_value_info(own(output), TensorProto.FLOAT, free),
        ],
    )
    # [block, ..., row, n] -> [..., block, row, n]
    to_rows = [
        *range(1, row_axis + 1),
        0,
        *range(row_axis + 1, rank + 1),
    ]
    return [
        whole("0", 0), whole("1", 1), whole("most", rows), whole("axis", row_axis),
        helper.make_node("Constant", [], [own("zero")], value_int=0),
        helper.make_node("Constant", [], [own("one")], value_int=1),
        node("Shape", ["features"], "n_steps", start=1, end=2),
        # Blocks of equal size: ceil(steps / rows) of them. Steps are at least one, so cutting off rounds as it should.
        node("Sub", [own("n_steps"), own("1")], "last"),
        node("Div", [own("last"), own("most")], "full"),
        node("Add", [own("full"), own("1")], "n_blocks"),
        node("Div", [own("last"), own("n_blocks")], "part"),
        node("Add", [own("part"), own("1")], "block_rows"),
        node("Squeeze", [own("block_rows"), own("0")], "block_rows_scalar"),
        node("Squeeze", [own("n_blocks"), own("0")], "n_blocks_scalar"),
        node("Range", [own("zero"), own("block_rows_scalar"), own("one")], "row_range"),
        helper.make_node("Loop", [own("n_blocks_scalar"), ""], [own("blocks")], name=own("loop"), body=loop_body),
        node("Transpose", [own("blocks")], "in_order", perm=to_rows),
        whole("shape", *[0] * row_axis, -1, *after),
        node("Reshape", [own("in_order"), own("shape")], "joined"),
        helper.make_node("Slice", [own("joined"), own("0"), own("n_steps"), own("axis")], [output]),
    ]  # fmt: skip


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
