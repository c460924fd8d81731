"""Recurrent layers over padded batches: every sequence is read within its own length, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsum_runtime.training.models.batch import take_rows


class BiLSTM(nn.Module):
    """Stacked bidirectional LSTM: x [B, T, n_in], lengths int64 [B] -> [B, T, 2 * width].

    A layer is two one-way LSTMs. The second reads the rows of each sequence in reverse order, its own last row first,
    so that padding is always read last and no valid row sees it; rows of the padding mean nothing.
    """

    def __init__(self, n_in: int, width: int, *, n_layers: int = 1) -> None:
        super().__init__()
        sizes = [n_in] + [2 * width] * (n_layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(size, width, batch_first=True) for size in sizes)
        self.back = nn.ModuleList(nn.LSTM(size, width, batch_first=True) for size in sizes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        step = torch.arange(x.shape[1], device=x.device)
        mirrored = (lengths[:, None] - 1 - step).clamp(min=0)
        for ahead, back in zip(self.ahead, self.back, strict=True):
            from_end = take_rows(back(take_rows(x, mirrored))[0], mirrored)
            x = torch.cat((ahead(x)[0], from_end), dim=-1)
        return x

    def torch_views(self, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Tensors by our parameter names, where this layer's begin with ``prefix.`` -> by those of ``nn.LSTM``."""
        views = {}
        for direction, suffix in (("ahead", ""), ("back", "_reverse")):
            for layer in range(len(self.ahead)):
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    ours = f"{prefix}.{direction}.{layer}.{part}_l0"
                    views[f"{part}_l{layer}{suffix}"] = tensors[ours]
        return views
