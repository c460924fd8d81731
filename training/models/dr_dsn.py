"""DR-DSN: a bidirectional LSTM, and the probability of keeping each step.

Source: Zhou, Qiao and Xiang, "Deep Reinforcement Learning for Unsupervised Video Summarization with
Diversity-Representativeness Reward", AAAI 2018. Of the authors' choices of cell only the LSTM is here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, flag, whole
from vsum_runtime.training.models.recurrent import BiLSTM


class DRDSN(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    hid_dim : int
        width of the LSTM in each direction
    num_layers : int
        LSTMs on top of one another
    cell, bidirectional       "lstm" and True, as published; nothing else is known
    """

    output = "scores"
    card = Card("unsupervised", "DR-DSN, AAAI", 2018, "MIT")

    def __init__(
        self,
        feature_dim: int,
        *,
        hid_dim: int = 256,
        num_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.hid_dim = whole("hid_dim", hid_dim, least=1)
        self.num_layers = whole("num_layers", num_layers, least=1)
        self.cell = choice("cell", cell, ("lstm",))
        self.bidirectional = flag("bidirectional", bidirectional)
        if not self.bidirectional:
            raise InputError("bidirectional: expected True, an LSTM in one direction is not offered")
        self.rnn = BiLSTM(feature_dim, self.hid_dim, n_layers=self.num_layers)
        self.fc = nn.Linear(2 * self.hid_dim, 1)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.fc.weight.dtype)
        padding = ~valid(lengths, features.shape[1])
        hidden = self.rnn(features.masked_fill(padding.unsqueeze(-1), 0.0), lengths)
        return torch.sigmoid(self.fc(hidden)).squeeze(-1).masked_fill(padding, 0.0)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        views = {f"rnn.{name}": tensor for name, tensor in self.rnn.torch_views(tensors, "rnn").items()}
        return views | {name: tensors[name] for name in ("fc.weight", "fc.bias")}

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}
