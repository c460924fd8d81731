"""PGL-SUM: one attention over the whole video, one over each of its segments, fused, then a two-layer regressor.

Source: Apostolidis et al., "Combining Global and Local Attention with Positional Encoding for Video Summarization",
IEEE ISM 2021. Position enters as a fixed bias on the attention energies, which are not scaled.

Departures from the authors' code, none of which changes a score: the matrices of all heads (and of all segments) are
kept as one tensor; videos come in padded batches; lengths of 1 to 7, 9, 10 and 13 steps, where the original stops with
an IndexError, work (a one-step block has no positional bias, an empty segment contributes nothing).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import at_least, check_batch, take_rows, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, real, whole

_LOCAL_HEADS = 4  # whatever ``heads`` says
_DROPOUT = 0.5
_MASKED = -1e9  # finite: every key of an empty segment is masked, and -inf would make its softmax NaN


class PGLSum(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    output_size : int
        width of all global heads together; None: D
    freq : float
        base of the sinusoids, > 0
    pos_enc                   "absolute", "relative" or None
    num_segments : int
        M >= 2; 0 or None: global attention alone
    heads : int
        global heads; a segment always has 4
    fusion                    "add", "mult", "avg", "max"; None: global attention alone
    init_type                 "xavier", "normal", "kaiming", "orthogonal"; None: the framework's own
    init_gain : float
        gain of xavier and orthogonal, None: sqrt 2; deviation of normal, which has no default
    """

    output = "scores"
    card = Card("supervised", "PGL-SUM, IEEE ISM", 2021, "academic, non-commercial")

    def __init__(
        self,
        feature_dim: int,
        *,
        output_size: int | None = None,
        freq: float = 10000,
        pos_enc: str | None = "absolute",
        num_segments: int | None = 4,
        heads: int = 8,
        fusion: str | None = "add",
        init_type: str | None = "xavier",
        init_gain: float | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.output_size = whole("output_size", output_size, feature_dim, least=1)
        self.freq = real("freq", freq, least=1e-30)
        self.pos_enc = choice("pos_enc", pos_enc, (None, "absolute", "relative"))
        self.num_segments = whole("num_segments", num_segments, 0, least=0) or None
        self.heads = whole("heads", heads, least=1)
        self.fusion = choice("fusion", fusion, (None, "add", "mult", "avg", "max"))
        self.init_type = choice("init_type", init_type, (None, "xavier", "normal", "kaiming", "orthogonal"))
        self.init_gain = real("init_gain", init_gain, None if self.init_type == "normal" else math.sqrt(2), least=0)
        if self.num_segments == 1:
            raise InputError("num_segments: expected none or an integer >= 2, got 1")
        local_width = self.output_size // (self.num_segments or 1) // _LOCAL_HEADS
        if self.output_size < self.heads or local_width < 1:
            raise InputError(
                f"output_size: {self.output_size} is too small for {self.heads} heads, "
                f"or for {self.num_segments} segments of {_LOCAL_HEADS} heads"
            )
        self.attention = _Attention(1, feature_dim, self.heads, self.output_size // self.heads)
        self.local_attention = None
        if self.num_segments and self.fusion:
            self.local_attention = _Attention(self.num_segments, feature_dim, _LOCAL_HEADS, local_width)
        self.linear_1 = nn.Linear(feature_dim, feature_dim)
        self.linear_2 = nn.Linear(feature_dim, 1)
        self.norm_y = nn.LayerNorm(feature_dim, eps=1e-6)
        self.norm_linear = nn.LayerNorm(feature_dim, eps=1e-6)
        self.dropout = nn.Dropout(_DROPOUT)
        if self.init_type is not None:
            self._initialise()

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.linear_1.weight.dtype)
        n_steps = features.shape[1]
        padding = ~valid(lengths, n_steps)
        x = features.masked_fill(padding.unsqueeze(-1), 0.0)
        w = self.attention(x[None], self._energy_bias(lengths, n_steps))[0]
        if self.local_attention is not None:
            w = self._fuse(F.normalize(w, dim=-1), F.normalize(self._local(x, lengths), dim=-1))
        y = self.norm_y(self.dropout(w + x))
        y = self.norm_linear(self.dropout(F.relu(self.linear_1(y))))
        return torch.sigmoid(self.linear_2(y)).squeeze(-1).masked_fill(padding, 0.0)

    def attention_weights(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The authors' second output: weights [B, T, T] (query, key) of the last global head, without dropout.

        Rows and columns of the padding mean nothing and are 0.
        """
        check_batch(features, lengths, self.feature_dim, self.linear_1.weight.dtype)
        steps = valid(lengths, features.shape[1])
        x = features.masked_fill(~steps.unsqueeze(-1), 0.0)
        query, key, _ = (x @ matrix[-1].T for matrix in self.attention.qkv[0])
        weights = torch.softmax(query @ key.mT + self._energy_bias(lengths, features.shape[1]), dim=-1)
        return weights * (steps.unsqueeze(-1) & steps.unsqueeze(-2))

    def _local(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Local attention of every step within its own segment, [B, T, D]."""
        n_steps = x.shape[1]
        n_segments = self.num_segments or 1
        longest = at_least(1, (n_steps + n_segments - 1) // n_segments)
        size = (lengths + n_segments - 1) // n_segments  # steps in a full segment, [B]
        segment = torch.arange(n_segments, device=x.device)[:, None]
        start = segment * size  # [M, B]
        n_valid = (lengths - start).clamp(min=0).minimum(size)

        offset = torch.arange(longest, device=x.device)
        rows = (start.T[..., None] + offset).clamp(max=n_steps - 1)  # [B, M, longest]
        segments = take_rows(x, rows.flatten(1)).unflatten(1, (n_segments, longest)).transpose(0, 1)
        out = self.local_attention(segments, self._energy_bias(n_valid.flatten(), longest))  # type: ignore[misc]

        step = torch.arange(n_steps, device=x.device)
        rows = (step // size[:, None]).clamp(max=n_segments - 1) * longest + step % size[:, None]
        return take_rows(out.transpose(0, 1).flatten(1, 2), rows)

    def _fuse(self, w: Tensor, local: Tensor) -> Tensor:
        if self.fusion == "add":
            return w + local
        if self.fusion == "mult":
            return w * local
        return (w + local) / 2 if self.fusion == "avg" else torch.maximum(w, local)

    def _energy_bias(self, lengths: Tensor, n_rows: int) -> Tensor:
        """What is added to the energies [X, n_rows, n_rows] of X sequences, or [X, 1, n_rows] where all rows are alike:
        their positional bias, and _MASKED for keys past their lengths [X]. Float32 whatever the weights: angles reach
        n_rows radians.
        """
        column = torch.arange(n_rows, device=lengths.device)
        row = column[:, None].float()
        length = lengths[:, None, None]
        masked = torch.where(column < length, 0.0, _MASKED)
        if self.pos_enc is None:
            return masked
        if self.pos_enc == "absolute":
            angle = row / self.freq ** (column // 2 * 2 / self.feature_dim)
        else:
            angle = (column - row + length - 1) / self.freq ** ((row + column) / (2 * length.clamp(min=1)))
        bias = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        return torch.where(column < length // 2 * 2, bias, masked)  # an odd last column has no bias

    def _initialise(self) -> None:
        """Per matrix of the authors' layout: a head's fan-out is its own width, not that of all heads together."""
        for key, tensor in self.reference_views(self.state_dict()).items():
            if "bias" in key:
                nn.init.constant_(tensor, 0.1)
            elif "norm" in key:
                continue
            elif self.init_type == "xavier":
                nn.init.xavier_uniform_(tensor, self.init_gain)
            elif self.init_type == "normal":
                nn.init.normal_(tensor, 0.0, self.init_gain)
            elif self.init_type == "kaiming":
                nn.init.kaiming_uniform_(tensor, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.orthogonal_(tensor, self.init_gain)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names (a state dict, or gradients) -> views of them by the authors' names."""
        views = {key: tensor for key, tensor in tensors.items() if "attention" not in key}
        names = _reference_names("attention.attention", self.attention.qkv.shape[2])
        views |= zip(names, self.attention.views(tensors, "attention", 0), strict=True)
        if self.local_attention is not None:
            for segment in range(self.num_segments or 0):
                names = _reference_names(f"attention.local_attention.{segment}", _LOCAL_HEADS)
                views |= zip(names, self.local_attention.views(tensors, "local_attention", segment), strict=True)
        return views

    def reference_unused(self) -> dict[str, Tensor | None]:
        """Without fusion the authors' state dict still holds the local attentions, which then do nothing."""
        return {} if self.fusion else {"attention.local_attention.": None}


class _Attention(nn.Module):
    """M multi-head self-attentions with a set of weights each: x [M, B, L, D] -> [M, B, L, D]."""

    def __init__(self, n_sets: int, feature_dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(n_sets, 3, heads, head_width, feature_dim))
        self.out = nn.Parameter(torch.empty(n_sets, feature_dim, heads * head_width))
        self.dropout = nn.Dropout(_DROPOUT)  # of the attention weights; holds the probability
        for weight in (self.qkv, self.out):
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(self, x: Tensor, energy_bias: Tensor) -> Tensor:
        n_sets, n_videos, n_rows, _ = x.shape
        _, _, heads, head_width, _ = self.qkv.shape
        query, key, value = (
            _linear(x.flatten(1, 2), matrix.flatten(1, 2))
            .view(n_sets, n_videos, n_rows, heads, head_width)
            .transpose(2, 3)
            .flatten(0, 1)
            for matrix in self.qkv.unbind(dim=1)
        )
        y = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=energy_bias.unsqueeze(1).to(query.dtype),
            dropout_p=self.dropout.p if self.training else 0.0,
            scale=1.0,
        )
        y = _linear(y.transpose(1, 2).reshape(n_sets, n_videos * n_rows, heads * head_width), self.out)
        return y.view(n_sets, n_videos, n_rows, -1)

    def views(self, tensors: dict[str, Tensor], prefix: str, index: int) -> list[Tensor]:
        """The matrices of one set in the order of ``_reference_names``."""
        query, key, value = tensors[f"{prefix}.qkv"][index]
        return [*key, *query, *value, tensors[f"{prefix}.out"][index]]


def _linear(x: Tensor, matrices: Tensor) -> Tensor:
    """x [M, N, n_in] by M matrices [M, n_out, n_in]; one by one, as ONNX Runtime packs matrices of two axes only."""
    return torch.stack([F.linear(rows, matrix) for rows, matrix in zip(x, matrices, strict=True)])


def _reference_names(prefix: str, heads: int) -> list[str]:
    names = [f"{prefix}.{matrix}.{head}.weight" for matrix in ("Wk", "Wq", "Wv") for head in range(heads)]
    return [*names, f"{prefix}.out.weight"]
