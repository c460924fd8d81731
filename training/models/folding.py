"""Layers of inference: what training keeps apart, as it learns each part, may be one matrix afterwards.

A layer that has such a form offers it as ``folded()``, a module with the same inputs and outputs, or itself where that
form is not the quicker one. Exports take it. Scores are the same up to rounding in float32.
"""

from __future__ import annotations

from torch import Tensor, nn


def product(*matrices: Tensor, scale: float = 1.0) -> nn.Linear:
    """The linear layer of scale x [n_out, n] @ ... @ [m, n_in], without bias, multiplied in float64."""
    whole = matrices[0].detach().double() * scale
    for matrix in matrices[1:]:
        whole = whole @ matrix.detach().double()
    layer = nn.Linear(whole.shape[1], whole.shape[0], bias=False)
    layer.weight = nn.Parameter(whole.to(matrices[0].dtype).contiguous(), requires_grad=False)
    return layer
