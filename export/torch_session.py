"""PyTorch behind the contract of the runtime's backends: the reference that others are compared with.

It is not in the table of backends: the runtime imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from vsum_runtime.export.onnx_from_torch import ScorerGraph


class TorchSession:
    """A model on the CPU, features and outputs of its own type; meets ``runtime.backends.base.Session`` in float32."""

    name, precision, batch_tokens, n_callers = "torch", "fp32", 1, 1
    is_reference, uses_host_memory = False, True

    def __init__(self, graph: ScorerGraph) -> None:
        self._graph = graph.eval()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        features, lengths = (torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in ("features", "lengths"))
        with torch.no_grad():
            return [output.numpy() for output in self._graph(features, lengths)]

    def close(self) -> None:
        pass
