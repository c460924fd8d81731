"""Features of one video and a torch model -> one score per step, whatever the model's output is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def step_scores(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores [T] for features [T, D], in evaluation mode; of proposals, the surest that covers a step counts."""
    device = next(model.parameters()).device
    rows, lengths = torch.from_numpy(features)[None].to(device), torch.tensor([len(features)], device=device)
    model.eval()
    if model.output == "proposals":
        from vsum_runtime.training.models.dsnet import proposals

        return proposals(model, rows, lengths)[0].scores  # type: ignore[arg-type]
    with torch.inference_mode():
        scores: NDArray[np.float32] = model(rows, lengths)[0].cpu().numpy()
    return scores
