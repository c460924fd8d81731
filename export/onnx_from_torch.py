"""PyTorch model in, ONNX file out, with free batch and time axes.

``torch.export`` is called here and not left to the ONNX exporter: when a dimension turns out to be constant, the
exporter repairs the request and freezes the axis without a word, while ``torch.export`` raises.

An ``nn.LSTM`` needs help: ``torch.export`` would unroll it over the example's steps. It becomes one operator that
nobody looks into, and that is written as the LSTM of ONNX. Parametrised weights, such as spectral norm's, are computed
once, here.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset18
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vsum_runtime.runtime.bundle import example_features
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.runtime.proposals import Decoder

OPSET = 18
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Note at a node that tells which part of the model it belongs to."""

_EXAMPLE_LENGTHS = (37, 52)  # a batch of 1 and a length of 1 tend to be taken as constants


class ScorerGraph(nn.Module):
    """What becomes the graph: raw features, normalised as in training, through the model."""

    def __init__(self, model: nn.Module, feature_norm: str) -> None:
        super().__init__()
        self.model = model
        self.l2 = feature_norm == "l2"
        self.outputs: Mapping[str, tuple[str | int, ...]] = getattr(model, "output_axes", {"scores": ("batch", "time")})
        """Name -> axes, in the order of what ``forward`` gives."""
        self.decoder: Decoder | None = getattr(model, "decoder", None)
        """What turns the outputs into scores, where they are proposals."""

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        if self.l2:
            norms = torch.linalg.vector_norm(features, dim=2, keepdim=True)
            features = features / norms.clamp(min=1e-12)
        outputs = self.model(features, lengths)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def scorer_onnx(graph: ScorerGraph, feature_dim: int, path: Path, *, fold: bool = True) -> None:
    """Write the scorer: ``features`` [batch, time, D], ``lengths`` [batch] -> ``graph.outputs``.

    ``fold``: take the shorter form of layers that have one, see ``training.models.folding``.

    Raises
    ------
    ExportError
        the model cannot be exported with free axes, and where it is stuck
    """
    features, lengths = example_features(feature_dim, _EXAMPLE_LENGTHS)
    _write(
        graph,
        {"features": torch.from_numpy(features), "lengths": torch.from_numpy(lengths)},
        {"features": {0: "batch", 1: "time"}, "lengths": {0: "batch"}},
        graph.outputs,
        path,
        fold,
    )


def network_onnx(network: nn.Module, height: int, width: int, feature_dim: int, path: Path) -> None:
    """Write a feature network: ``images`` [batch, 3, H, W] -> ``features`` [batch, D]."""
    _write(
        network,
        {"images": torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))},
        {"images": {0: "batch"}},
        {"features": ("batch", feature_dim)},
        path,
        fold=False,
    )


def _write(
    module: nn.Module,
    example: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, str]],
    outputs: Mapping[str, tuple[str | int, ...]],
    path: Path,
    fold: bool,
) -> None:
    name = type(getattr(module, "model", module)).__name__
    dims = {axis: torch.export.Dim(axis) for axes in free.values() for axis in axes.values()}
    shapes = {value: {index: dims[axis] for index, axis in axes.items()} for value, axes in free.items()}
    try:
        module = _made_plain(module.eval(), fold)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.export.export(module, tuple(example.values()), dynamic_shapes=tuple(shapes.values()))
            exported = torch.onnx.export(
                program,
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes={value: dict(axes) for value, axes in free.items()},  # the names only
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
                custom_translation_table={
                    torch.ops.vsum.lstm.default: _onnx_lstm,
                    torch.ops.aten.sigmoid.default: _onnx_sigmoid,
                },
            )
        assert exported is not None
        model = exported.model_proto
    except Exception as error:
        raise ExportError(f"{name} cannot be exported with free axes: {error}") from error
    for value in model.graph.output:
        for axis, dim in zip(outputs[value.name], value.type.tensor_type.shape.dim, strict=True):
            # The exporter names a computed axis by its formula; a frozen one stays a number for the gate to find.
            if isinstance(axis, str) and dim.dim_param:
                dim.dim_param = axis
    for node in model.graph.node:  # the exporter also keeps stack traces, with the paths of this machine
        kept = [entry for entry in node.metadata_props if entry.key == NAME_SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


torch.library.define("vsum::lstm", "(Tensor x, Tensor w, Tensor r, Tensor b) -> Tensor")
"""The LSTM of ONNX, one direction: x [T, B, n_in], w [1, 4H, n_in], r [1, 4H, H], b [1, 8H] -> [T, B, H]."""


@torch.library.register_fake("vsum::lstm")  # type: ignore[untyped-decorator]
def _shape_of_lstm(x: Tensor, w: Tensor, r: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], r.shape[2])


def _onnx_lstm(x: Any, w: Any, r: Any, b: Any) -> Any:
    """``vsum::lstm`` as operators of ONNX, whose output has an axis of directions."""
    operators: Any = opset18
    y, _, _ = operators.LSTM(x, w, r, b, hidden_size=r.shape[2])
    return operators.Squeeze(y, operators.Constant(value_ints=[1]))


def _onnx_sigmoid(x: Any) -> Any:
    """The sigmoid by its formula: ONNX Runtime's own is right to 1e-7 and gives 0 below -18, where scores still differ.

    Some models score all of a video that low, and then that operator loses their order.
    """
    operators: Any = opset18
    one = operators.Constant(value_float=1.0)
    return operators.Div(one, operators.Add(one, operators.Exp(operators.Neg(x))))


class _OpaqueLSTM(nn.Module):
    """An ``nn.LSTM`` of one layer and one direction, for export only; its second output is left out."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        if lstm.num_layers > 1 or lstm.bidirectional or lstm.proj_size or not (lstm.batch_first and lstm.bias):
            raise ExportError(f"expected LSTMs of one layer and one direction, biased and batch first, got {lstm}")
        w_ih, w_hh, b_ih, b_hh = (_gates_reordered(weight.detach()) for weight in lstm.parameters())
        self.register_buffer("w", w_ih[None])
        self.register_buffer("r", w_hh[None])
        self.register_buffer("b", torch.cat((b_ih, b_hh))[None])

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.ops.vsum.lstm(x.transpose(0, 1), self.w, self.r, self.b).transpose(0, 1), None


def _gates_reordered(weight: Tensor) -> Tensor:
    """Gates as PyTorch stacks them (input, forget, cell, output) -> as ONNX does (input, output, forget, cell)."""
    i, f, g, o = weight.chunk(4)
    return torch.cat((i, o, f, g))


def _made_plain(module: nn.Module, fold: bool) -> nn.Module:
    """A copy, folded if asked, whose LSTMs are each an ``_OpaqueLSTM`` and parametrised weights ordinary ones."""
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.LSTM) or (fold and hasattr(layer, "folded")):
            parent, _, child = name.rpartition(".")
            plain = _OpaqueLSTM(layer) if isinstance(layer, nn.LSTM) else layer.folded()
            setattr(module.get_submodule(parent), child, plain)
        if parametrize.is_parametrized(layer):
            weights = {weight: nn.Parameter(getattr(layer, weight).detach()) for weight in layer.parametrizations}
            # Not remove_parametrizations: it takes the weights from the class, which the original shares.
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for weight, value in weights.items():
                layer.register_parameter(weight, value)
    return module
