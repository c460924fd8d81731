"""CSTA: the matrix of step features seen as an image; a CNN turns it into an attention map over steps and features.

Source: Son, Park and Kim, "CSTA: CNN-based Spatiotemporal Attention for Video Summarization", CVPR 2024
(arXiv 2405.11905). A learned CLS row stands above the T steps: N = T + 1 rows, until neighbouring rows are averaged,
which the authors call adaptive pooling of CLS. Their layer norm after a skip is a batch norm of one channel.

Departures from the authors' code, none of which changes a score: videos come in padded batches; the key embedding,
whose three channels differ in the CLS row alone, is computed once for all other rows; the fixed position table is
computed and not stored, and has no last row; fewer than 14 steps, where the original stops in a pool, work.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import at_least, check_batch, may_read_values, take_rows, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, flag, real
from vsum_runtime.training.models.padded_cnn import EfficientNetB0, GoogLeNet, MobileNetV2, ResNet18

_CNNS: dict[str, tuple[str, Any]] = {
    "GoogleNet": ("googlenet", GoogLeNet),
    "MobileNet": ("mobilenet", MobileNetV2),
    "EfficientNet": ("efficientnet", EfficientNetB0),
    "ResNet": ("resnet", ResNet18),
}
"""The authors' model name -> the prefix of its weights in their state dict, and our module."""

_MASKED = -1e9
_TABLE_ROWS = 5000  # of a learned position table


class CSTA(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    In training mode B must be 1: batch norm takes its statistics from one video. The embeddings map D to W, the width
    of the CNN's output: 1024 of GoogLeNet, 1280 of MobileNet and EfficientNet, 512 of ResNet.

    Parameters
    ----------
    feature_dim : int
        D
    model_name                "GoogleNet", "MobileNet", "EfficientNet" or "ResNet"; with "_Attention" after it the map
                              weighs embedded values, without it weighs itself
    scale                     divide the map by the root of its width "D", of its rows "T", of both "T_D"; None
    softmax_axis              "TD", "T", "D"; None: the map weighs as it is
    balance                   with "TD", weigh the softmaxes by their sizes: "T", "D", "BD", "BU"; None
    positional_encoding       "FPE" fixed, "RPE" relative, "LPE" learned (T < 5000), "CPE" a convolution; None
    positional_encoding_shape "TD", or "T": the same for all features
    positional_encoding_way   "PGL_SUM": onto the map; "Transformer": onto the input, which is embedded once more; None
    dropout_on, dropout_ratio of the softmaxes (way "PGL_SUM") or of the input ("Transformer")
    classifier_on : bool
        False: a score is the mean over features, not a probability
    cls_on : bool
        False: no CLS row
    cls_mix                   where N rows become T: after the "CNN", after the softmaxes "SM", or at the end "Final"
    key_value_emb             "kv"; None: no embeddings. With "k" or "v" alone the original stops: refused
    skip_connection           "KC" key to map, "CF" map to mix, "IF" input to mix; None. With "IF" and cls_mix "SM" the
                              original stops: refused
    layernorm : bool
        normalise after the skip
    """

    output = "scores"
    card = Card("supervised", "CSTA, CVPR", 2024, "MIT")

    def __init__(
        self,
        feature_dim: int,
        *,
        model_name: str = "GoogleNet_Attention",
        scale: str | None = None,
        softmax_axis: str | None = "TD",
        balance: str | None = None,
        positional_encoding: str | None = "FPE",
        positional_encoding_shape: str = "TD",
        positional_encoding_way: str | None = "PGL_SUM",
        dropout_on: bool = True,
        dropout_ratio: float = 0.6,
        classifier_on: bool = True,
        cls_on: bool = True,
        cls_mix: str = "Final",
        key_value_emb: str | None = "kv",
        skip_connection: str | None = "KC",
        layernorm: bool = True,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        names = tuple(name + attention for attention in ("_Attention", "") for name in _CNNS)
        encodings = (None, "FPE", "RPE", "LPE", "CPE")
        ways = (None, "PGL_SUM", "Transformer")
        self.model_name = choice("model_name", model_name, names) or ""
        self.scale = choice("scale", scale, (None, "D", "T", "T_D"))
        self.softmax_axis = choice("softmax_axis", softmax_axis, (None, "T", "D", "TD"))
        self.balance = choice("balance", balance, (None, "T", "D", "BD", "BU"))
        self.positional_encoding = choice("positional_encoding", positional_encoding, encodings)
        self.positional_encoding_shape = choice("positional_encoding_shape", positional_encoding_shape, ("T", "TD"))
        self.positional_encoding_way = choice("positional_encoding_way", positional_encoding_way, ways)
        self.dropout_on = flag("dropout_on", dropout_on)
        self.dropout_ratio = real("dropout_ratio", dropout_ratio, least=0, most=1)
        self.classifier_on = flag("classifier_on", classifier_on)
        self.cls_on = flag("cls_on", cls_on)
        self.cls_mix = choice("cls_mix", cls_mix, ("CNN", "SM", "Final"))
        self.key_value_emb = choice("key_value_emb", key_value_emb, (None, "kv"))
        self.skip_connection = choice("skip_connection", skip_connection, (None, "KC", "CF", "IF"))
        self.layernorm = flag("layernorm", layernorm)

        name, _, attention = self.model_name.partition("_")
        self._weighs_values = bool(attention)
        self._prefix, cnn = _CNNS[name]
        self.cnn = cnn()
        width = self.cnn.width
        if feature_dim != width and (self.key_value_emb is None or self.skip_connection == "IF"):
            raise InputError(
                f"CSTA with key_value_emb {self.key_value_emb} and skip_connection {self.skip_connection}: expected "
                f"feature_dim {width}, the width of {name}, got {feature_dim}; choose kv, and a skip other than IF"
            )
        self._merge_at = self.cls_mix if self.cls_on else None
        if self._merge_at == "SM" and self.skip_connection == "IF":
            raise InputError("CSTA: skip_connection IF adds N rows to the T rows that cls_mix SM leaves; change either")

        self.CLS = nn.Parameter(torch.zeros(1, 3, 1, feature_dim)) if self.cls_on else None
        self.key_embedding = nn.Linear(feature_dim, width) if self.key_value_emb else nn.Identity()
        self.value_embedding = nn.Linear(feature_dim, width) if self.key_value_emb and attention else nn.Identity()
        self.norm = nn.BatchNorm2d(1) if self.skip_connection and self.layernorm else nn.Identity()
        on_input = self.positional_encoding_way == "Transformer"
        self.input_embedding = nn.Linear(feature_dim, feature_dim) if on_input else None
        kind = self.positional_encoding if self.positional_encoding_way else None
        per_feature = self.positional_encoding_shape == "TD"
        self.position = _Position(kind, feature_dim if on_input else width, per_feature=per_feature, on_input=on_input)
        self.dropout = nn.Dropout(self.dropout_ratio if self.dropout_on and self.positional_encoding_way else 0.0)
        self.linear1: nn.Module | None = None
        self.linear2: nn.Module | None = None
        if self.classifier_on:
            dense, score = nn.Linear(width, width), nn.Linear(width, 1)
            for linear in (dense, score):
                nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(2))
                nn.init.constant_(linear.bias, 0.1)
            self.linear1 = nn.Sequential(dense, nn.ReLU(), nn.Dropout(0.5), nn.LayerNorm(width, eps=1e-6))
            self.linear2 = nn.Sequential(score, nn.Sigmoid())

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, next(self.parameters()).dtype)
        n_videos, n_steps, _ = features.shape
        if not self.training and (torch.compiler.is_compiling() or n_videos > 1 or not may_read_values()):
            padding = ~valid(lengths, n_steps)
            scores = self._scores(features.masked_fill(padding.unsqueeze(-1), 0.0), lengths, padded=True)
            return scores.masked_fill(padding, 0.0)
        if n_videos > 1:
            raise InputError(
                f"CSTA in training mode: expected one video, got a batch of {n_videos}; batch norm takes its "
                "statistics from one video, so call the model once a video and add up the gradients"
            )
        length = int(lengths)
        return F.pad(self._scores(features[:, :length], lengths, padded=False), (0, n_steps - length))

    def _scores(self, x: Tensor, lengths: Tensor, *, padded: bool) -> Tensor:
        """x [B, T, D] -> scores [B, T]. Where ``padded``, x is 0 past lengths [B] and the scores there mean nothing."""
        rows = lengths + self.cls_on
        key, x = self._key_and_input(x, rows)
        attention = self._map(key, rows, padded=padded)
        if self.skip_connection == "KC":
            attention = self._normalise(attention + key[:, 0])
        if self._merge_at == "CNN":
            attention, x, rows = _merge(attention), _merge(x), lengths
        if self.scale is not None:
            columns = torch.full_like(rows, attention.shape[2])
            size = {"D": columns, "T": rows, "T_D": rows * columns}[self.scale]
            attention = attention / size.sqrt()[:, None, None]
        if self.positional_encoding_way == "PGL_SUM":
            attention = self.position(attention, rows)

        value = self.value_embedding(x) if self._weighs_values else attention
        weight = self._weight(attention, rows, lengths if self._merge_at == "SM" else rows)
        if self._merge_at == "SM":
            attention, value, weight = _merge(attention), _merge(value), _merge(weight)
        mix = value * weight
        if self.skip_connection == "CF":
            mix = self._normalise(mix + attention)
        elif self.skip_connection == "IF":
            mix = self._normalise(mix + x)
        if self._merge_at == "Final":
            mix = _merge(mix)
        if self.linear1 is None or self.linear2 is None:
            return mix.mean(dim=2)
        return self.linear2(self.linear1(mix)).squeeze(-1)

    def _key_and_input(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, 3, N, W], and the first of the three channels they were made from [B, N, D]."""
        if self.input_embedding is not None:
            channels = self._image(self.CLS, self.input_embedding(x)).unbind(dim=1)
            image = self.dropout(torch.stack([self.position(channel, rows) for channel in channels], dim=1))
            return self.key_embedding(image), image[:, 0]
        if self.CLS is None:
            return self._image(None, self.key_embedding(x)), x
        key = self._image(self.key_embedding(self.CLS), self.key_embedding(x))
        return key, torch.cat((self.CLS[:, 0].expand(x.shape[0], -1, -1), x), dim=1)

    def _image(self, cls: Tensor | None, x: Tensor) -> Tensor:
        """The rows of x [B, T, C] in three channels, below the channel's own CLS row [1, 3, 1, C] if there is one."""
        x = x.unsqueeze(1).expand(-1, 3, -1, -1)
        return x if cls is None else torch.cat((cls.expand(x.shape[0], -1, -1, -1), x), dim=2)

    def _map(self, key: Tensor, rows: Tensor, *, padded: bool) -> Tensor:
        """Key images [B, 3, N, W] -> attention map [B, N, W]; channel c of the CNN is column c of the map."""
        n_rows = key.shape[2]
        if padded:
            key = key.masked_fill(~valid(rows, n_rows)[:, None, :, None], 0.0)
            key = F.pad(key, (0, 0, 0, at_least(self.cnn.least_height, n_rows) - n_rows))
        maps, heights = self.cnn(key, rows if padded else None)
        if heights is None:
            heights = torch.full_like(rows, maps.shape[2])
        # Adaptive average pooling from h rows to N >= h: row i is the mean of rows i*h // N and ((i+1)*h - 1) // N.
        row, rows, heights = torch.arange(n_rows, device=key.device), rows[:, None], heights[:, None]
        first = (row * heights // rows).minimum(heights - 1)
        last = (((row + 1) * heights - 1) // rows).minimum(heights - 1)
        pooled = maps.mean(dim=3).mT
        return (take_rows(pooled, first) + take_rows(pooled, last)) / 2

    def _normalise(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        if self.training or not isinstance(norm, nn.BatchNorm2d):
            return norm(x.unsqueeze(1)).squeeze(1)
        # Between a sum and a sum there is no convolution to fold it into: two numbers, known when a graph is made.
        running_mean, running_var = (cast(Tensor, part) for part in (norm.running_mean, norm.running_var))
        scale = norm.weight * torch.rsqrt(running_var + norm.eps)
        return x * scale + (norm.bias - running_mean * scale)

    def _weight(self, attention: Tensor, rows: Tensor, mixed_rows: Tensor) -> Tensor:
        """What multiplies the values [B, N, W]: the map's softmax over rows [B] plus that over columns."""
        if self.softmax_axis is None:
            return attention
        padding = ~valid(rows, attention.shape[1])
        over_rows = attention.masked_fill(padding.unsqueeze(-1), _MASKED).softmax(dim=1)
        if self.softmax_axis == "T":
            return self.dropout(over_rows)
        over_columns = attention.softmax(dim=2)
        if self.softmax_axis == "D":
            return self.dropout(over_columns)
        taller = (mixed_rows / attention.shape[2])[:, None, None]
        row_factor, column_factor = {
            None: (1, 1),
            "T": (taller, 1),
            "D": (1, 1 / taller),
            "BD": (taller.clamp(max=1), (1 / taller).clamp(max=1)),
            "BU": (taller.clamp(min=1), (1 / taller).clamp(min=1)),
        }[self.balance]
        return self.dropout(over_rows) * row_factor + self.dropout(over_columns) * column_factor

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names (a state dict, or gradients) -> the same by the authors' names."""
        theirs = {
            "cnn": self._prefix,
            "norm": {"KC": "layernorm1", "CF": "layernorm2", "IF": "layernorm3"}.get(self.skip_connection or ""),
            "input_embedding": "Positional_encoding_embedding",
            "position": "Positional_encoding_op",
        }
        split = {key: key.partition(".") for key in tensors}
        return {f"{theirs.get(top, top)}{dot}{rest}": tensors[key] for key, (top, dot, rest) in split.items()}

    def reference_unused(self) -> dict[str, Tensor | None]:
        """The CNN's own classifier, and the position table where it is fixed or where nothing adds it."""
        unused: dict[str, Tensor | None] = {f"{self._prefix}.{head}": None for head in self.cnn.heads}
        if self.positional_encoding_way is None:
            unused["Positional_encoding_op."] = None
        elif self.positional_encoding == "FPE":
            rows = torch.tensor([_TABLE_ROWS], device=self.position.frequencies.device)
            unused["Positional_encoding_op.pe"] = self.position.table(rows, _TABLE_ROWS)
        return unused


def load_cnn(model: CSTA, path: str | Path) -> None:
    """Start from a CNN trained on pictures: the published recipe, whose weights are torchvision's IMAGENET1K_V1.

    Parameters
    ----------
    path                      the network's state dict as torchvision distributes it (.pth), or as .safetensors

    Raises
    ------
    InputError
        no such file, not a state dict, or that of another network
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        model.cnn.load_state_dict({key: value for key, value in weights.items() if not key.startswith(model.cnn.heads)})
    except Exception as error:  # of many types: any file may come
        raise InputError(
            f"{path}: expected torchvision's state dict of {type(model.cnn).__name__} (weights IMAGENET1K_V1), "
            f".pth or .safetensors; cannot load it: {str(error)[:300]}"
        ) from None


def _merge(rows: Tensor) -> Tensor:
    """Rows [B, N, C] -> means of neighbours [B, N - 1, C]: adaptive average pooling from N to N - 1."""
    return (rows[:, :-1] + rows[:, 1:]) / 2


class _Position(nn.Module):
    """Adds positions to x [B, R, C], of which the first rows [B] count."""

    pe: Any  # a table of rows, or a convolution
    frequencies: Tensor

    def __init__(self, kind: str | None, width: int, *, per_feature: bool, on_input: bool) -> None:
        super().__init__()
        self.kind, self.width, self.per_feature, self.on_input = kind, width, per_feature, on_input
        if kind == "LPE":
            self.pe = nn.Parameter(torch.randn(_TABLE_ROWS, width if per_feature else 1))
        elif kind == "CPE":
            self.pe = nn.Conv1d(width, width, 3, padding=1, groups=1 if per_feature else width)
        frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        if self.kind is None:
            return x
        if self.kind == "CPE":
            return x + self.pe(x.masked_fill(~valid(rows, x.shape[1]).unsqueeze(-1), 0.0).mT).mT
        if self.on_input:
            # The authors' code takes as many rows of the table as the batch has videos, one: all steps get row 0.
            return x + self.table(torch.ones_like(rows[:1]), 1)
        return x + self.table(rows, x.shape[1])

    def table(self, rows: Tensor, n_rows: int) -> Tensor:
        """What is added to the first n_rows rows [1 or B, n_rows, C or 1]."""
        row = torch.arange(n_rows, device=rows.device)[:, None]
        if self.kind == "LPE":
            if not torch.compiler.is_compiling() and n_rows > _TABLE_ROWS:
                raise InputError(
                    f"CSTA with a learned position table: expected at most {_TABLE_ROWS} rows, T and CLS, got {n_rows}"
                )
            return self.pe[row[:, 0].clamp(max=_TABLE_ROWS - 1)][None]
        if self.kind == "FPE":
            angle = row * self.frequencies if self.per_feature else row.float()
            pairs = (angle.sin(), angle.cos()) if self.per_feature else (angle.sin(),)
            return torch.stack(pairs, dim=-1).flatten(1)[None, :, : self.width]
        n_columns = self.width if self.per_feature else 1
        column = torch.arange(n_columns, device=rows.device)
        rows = rows[:, None, None]
        angle = (column - row + rows - 1) / 10000.0 ** ((row + column) / (rows + n_columns))
        waves = torch.where(row % 2 == 0, angle.sin(), angle.cos())
        return torch.where(row < rows // 2 * 2, waves, 0.0)  # rows go in pairs: an odd last one has no position
