"""SSPVS: a transformer that scores a video in stages, each on features scaled by the scores before; text may guide it.

Source: Li et al., "Progressive Video Summarization via Multimodal Self-supervised Learning", WACV 2023. Two networks
share a video encoder and a text encoder: the summarizer ``SSPVS`` and the pretraining network ``SSPVSPretraining``.

Departures from the authors' code, none of which changes a score: videos come in padded batches (padding is hidden from
attention; the original scores one video at a time), text rows too; the position table is computed, not stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training import models
from vsum_runtime.training.models.batch import check_batch, take_rows, valid
from vsum_runtime.training.models.bert import CLS, SEP, bert
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, flag, real, whole

_HIDDEN = -1e4  # exp(-1e4) is 0 in any precision, and half precision can still hold it
_EMPTY_ROW = (CLS, SEP, SEP, SEP)  # the text row of a video whose category, query and title are empty


class SSPVS(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D, also the width of the encoder; a multiple of ``nhead_vid``
    iter : int
        stages, >= 1; the score is the product of one sigmoid per stage
    nlayers_vid : int
        layers of the encoder, which all stages share
    nhead_vid : int
        heads of its attention
    nhid_vid : int
        width of its feed-forward part
    dropout_vid : float
        in the encoder and after the positions; before a score layer it is always 0.1
    pos_enc_weight : float
        factor of the sinusoids
    pos_max_len : int
        T must stay below it
    with_info_guide : bool
        the text branch: a vector of the video's text is added to every step in the first stage
    text_trainable : bool
        training changes BERT's pooler; its other weights are frozen in any case
    text_encoder              the BERT of the text branch, as ``training.models.bert`` takes it
    missing_text              what a call without text does: "refuse", or "empty" to score as if all fields were empty
    d_model, d_text           the authors' names of D and of the width of BERT, which must be the same
    dropout_predictor         in the authors' settings, but without effect in their code and here
    parameters, requires_grad_in_original
                              where given, the number of parameters that the model must have, and of trained ones
    """

    output = "scores"
    card = Card("supervised", "SSPVS, WACV", 2023, "research use only")

    def __init__(
        self,
        feature_dim: int,
        *,
        iter: int = 4,
        nlayers_vid: int = 3,
        nhead_vid: int = 8,
        nhid_vid: int = 4096,
        dropout_vid: float = 0.1,
        pos_enc_weight: float = 0.1,
        pos_max_len: int = 5000,
        with_info_guide: bool = False,
        text_trainable: bool = True,
        text_encoder: str | Mapping[str, Any] | None = None,
        missing_text: str = "refuse",
        d_model: int | None = None,
        d_text: int | None = None,
        dropout_predictor: float | None = None,
        parameters: int | None = None,
        requires_grad_in_original: int | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.pos_enc_weight = real("pos_enc_weight", pos_enc_weight, least=0)
        self.pos_max_len = whole("pos_max_len", pos_max_len, least=2)
        self.missing_text = choice("missing_text", missing_text, ("refuse", "empty"))
        self.options: dict[str, Any] = {
            "iter": whole("iter", iter, least=1),
            "nlayers_vid": whole("nlayers_vid", nlayers_vid, least=1),
            "nhead_vid": whole("nhead_vid", nhead_vid, least=1),
            "nhid_vid": whole("nhid_vid", nhid_vid, least=1),
            "dropout_vid": real("dropout_vid", dropout_vid, least=0, most=1),
            "pos_enc_weight": self.pos_enc_weight,
            "pos_max_len": self.pos_max_len,
            "with_info_guide": flag("with_info_guide", with_info_guide),
        }
        if feature_dim % self.options["nhead_vid"]:
            raise InputError(f"nhead_vid: {self.options['nhead_vid']} heads do not divide the {feature_dim} features")
        self.v_cls = nn.Parameter(torch.randn(1, feature_dim))
        self.encoder = _Encoder(
            feature_dim,
            self.options["nlayers_vid"],
            self.options["nhead_vid"],
            self.options["nhid_vid"],
            self.options["dropout_vid"],
        )
        self.score_predict = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.1), nn.Linear(feature_dim, 1)) for _ in range(self.options["iter"])
        )
        self.text: _Text | None = None
        if self.options["with_info_guide"]:
            self.text = _Text(feature_dim, text_encoder, flag("text_trainable", text_trainable))
            self.options |= {
                "text_trainable": self.text.trainable,
                "text_encoder": self.text.recipe,
                "missing_text": self.missing_text,
            }
        counts = {
            "d_model": (d_model, feature_dim),
            "d_text": (d_text if self.text else None, self.text and self.text.bert.config.hidden_size),
            "parameters": (parameters, sum(p.numel() for p in self.parameters())),
            "requires_grad_in_original": (
                requires_grad_in_original,
                sum(p.numel() for p in self.parameters() if p.requires_grad),
            ),
        }
        for name, (expected, value) in counts.items():
            if expected is not None and whole(name, expected, least=0) != value:
                raise InputError(f"{name}: expected {expected}, but this model has {value}: {self.options}")

    def forward(self, features: Tensor, lengths: Tensor, text: Tensor | None = None) -> Tensor:
        """``text``: float32 [B, D] of ``encode_text``; a row of zeros leaves the text out of that video's scores."""
        scores, *later = self.stage_scores(features, lengths, text)
        for stage in later:
            scores = scores * stage
        return scores

    def stage_scores(self, features: Tensor, lengths: Tensor, text: Tensor | None = None) -> list[Tensor]:
        """The factors of the scores, one [B, T] per stage."""
        check_batch(features, lengths, self.feature_dim, self.v_cls.dtype)
        n_videos, n_steps, _ = features.shape
        if not torch.compiler.is_compiling() and n_steps >= self.pos_max_len:
            raise InputError(
                f"features: expected T < pos_max_len = {self.pos_max_len}, got T={n_steps}; sample fewer steps, or "
                "build with a larger pos_max_len (positions that were never trained)"
            )
        padding = ~valid(lengths, n_steps)
        guide = self._guide(text, n_videos)
        x = features.masked_fill(padding.unsqueeze(-1), 0.0)
        stages = []
        for index, predict in enumerate(self.score_predict):
            y = self.encode(x, lengths, self.pos_enc_weight)[:, 1:] + x
            if index == 0 and guide is not None:
                y = y + guide.unsqueeze(1)
            stages.append(torch.sigmoid(predict(y)).squeeze(-1).masked_fill(padding, 0.0))
            x = x * (1 + stages[-1].unsqueeze(-1))
        return stages

    def encode(self, x: Tensor, lengths: Tensor, pos_enc_weight: float) -> Tensor:
        """Rows [B, T, D] -> [B, 1 + T, D], the video token first. Rows past a length are hidden from attention."""
        n_videos, n_steps, _ = x.shape
        rows = torch.cat((self.v_cls.expand(n_videos, 1, -1), x), dim=1)
        hidden = ~valid(lengths + 1, n_steps + 1)
        energy_bias = torch.where(hidden, _HIDDEN, 0.0).to(x.dtype)
        encoded: Tensor = self.encoder(rows, energy_bias[:, None, None], pos_enc_weight)
        return encoded

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token rows int64 [B, L] of the given lengths [B] -> text vectors float32 [B, D].

        A row's own [PAD] tokens, before its length, take part as they did in training; ids past its length do not.

        Raises
        ------
        InputError
            the model has no text branch, or the ids are none of its vocabulary
        """
        if self.text is None:
            raise InputError("text: this SSPVS was built without a text branch; build it with with_info_guide=true")
        _, pooled = self.text(ids, lengths)
        vector: Tensor = self.text.project_t_v(pooled)
        return vector

    def _guide(self, text: Tensor | None, n_videos: int) -> Tensor | None:
        if text is not None:
            if self.text is None or text.shape != (n_videos, self.feature_dim):
                raise InputError(
                    f"text: expected {'none' if self.text is None else [n_videos, self.feature_dim]}, "
                    f"got {list(text.shape)}; give what encode_text of this model returns, one row a video"
                )
            return text
        if self.text is None:
            return None
        if self.missing_text == "refuse":
            raise InputError(
                "text: this SSPVS was trained with text and got none; give what encode_text returns, "
                "or build it with missing_text=empty to score as if category, query and title were empty"
            )
        row = torch.tensor([_EMPTY_ROW], device=self.v_cls.device)
        return self.encode_text(row, torch.tensor([len(_EMPTY_ROW)], device=row.device)).expand(n_videos, -1)

    def reference_rewritten(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The authors' checkpoints put "video_model." before every name."""
        return {name.removeprefix("video_model."): value for name, value in state_dict.items()}

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names (a state dict, or gradients) -> the same by the authors' names."""
        return {_reference_name(name): tensor for name, tensor in tensors.items()}

    def reference_unused(self) -> dict[str, Tensor | None]:
        """The position table is computed here."""
        return {"pos_encoder.pe": None}


class Pretraining(NamedTuple):
    """What the pretraining network makes of B pairs of a video and a text."""

    match: Tensor
    """[B] logit that the text belongs to the video."""
    recovered: Tensor
    """[B, D] guess at the masked step."""
    frames: Tensor
    """[B, 1 + T, D] encoded steps, the video token first."""
    words: Tensor
    """[B, L, D] encoded text tokens."""


class SSPVSPretraining(nn.Module):
    """A summarizer's encoders, and the heads that teach them without labels.

    The child ``model`` is the summarizer (its score layers take no part); the child ``heads`` is dropped afterwards.

    Parameters
    ----------
    model                     a summarizer with text; all of its BERT is trained from here on, if ``text_trainable``
    window_size : int
        steps that the neighbourhood guess sees, the masked one in their middle; odd
    dropout_classifier : float
    pos_enc_weight : float
        factor of the sinusoids, whatever that of the summarizer is
    """

    def __init__(
        self, model: SSPVS, *, window_size: int = 9, dropout_classifier: float = 0.1, pos_enc_weight: float = 1.0
    ) -> None:
        super().__init__()
        if model.text is None:
            raise InputError("pretraining matches videos with texts; build the model with with_info_guide=true")
        if window_size < 1 or window_size % 2 == 0:
            raise InputError(f"window_size: expected an odd number >= 1, got {window_size}")
        model.text.bert.requires_grad_(model.text.trainable)
        self.model = model
        self.heads = _Heads(model, dropout_classifier)
        self.window_size = window_size
        self.pos_enc_weight = pos_enc_weight
        self.options = model.options | {"window_size": window_size, "pos_enc_weight": pos_enc_weight}

    def forward(
        self, features: Tensor, lengths: Tensor, masked_step: Tensor, ids: Tensor, id_lengths: Tensor
    ) -> Pretraining:
        """Features [B, T, D], lengths [B], the step that is hidden [B], token rows [B, L] and their lengths [B]."""
        model, heads = self.model, self.heads
        assert model.text is not None
        check_batch(features, lengths, model.feature_dim, model.v_cls.dtype)
        n_steps, middle = features.shape[1], self.window_size // 2
        x = features.masked_fill(~valid(lengths, n_steps).unsqueeze(-1), 0.0)
        masked = torch.arange(n_steps, device=x.device) == masked_step.unsqueeze(-1)
        x = torch.where(masked.unsqueeze(-1), heads.v_mask, x)
        frames = model.encode(x, lengths, self.pos_enc_weight)
        words, pooled = model.text(ids, id_lengths)

        encoded = frames[torch.arange(len(x), device=x.device), masked_step + 1]
        window = masked_step.unsqueeze(-1) + torch.arange(self.window_size, device=x.device)
        around = take_rows(F.pad(x, (0, 0, middle, middle)), window)
        around = heads.encoder_naive(around, None, self.pos_enc_weight)[:, middle]
        share = torch.softmax(heads.prob_dist(encoded), dim=-1)
        recovered = share[:, :1] * heads.video_decoder_naive(around) + share[:, 1:] * heads.video_decoder(encoded)

        video = torch.tanh(heads.vid_cls_decoder(frames[:, 0]))
        match = heads.classifier(torch.cat((pooled, video), dim=-1)).squeeze(-1)
        return Pretraining(match, recovered, frames, model.text.project_t_v(words))

    def reference_rewritten(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return self.model.reference_rewritten(state_dict)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by our parameter names -> the same by the authors' names; their network has no score layers."""
        names = {name: name.removeprefix("model.").removeprefix("heads.") for name in tensors}
        return {
            _reference_name(short): tensors[name]
            for name, short in names.items()
            if not short.startswith("score_predict.")
        }

    def reference_unused(self) -> dict[str, Tensor | None]:
        return self.model.reference_unused()


def start_from_pretraining(model: SSPVS, state_dict: Mapping[str, Any]) -> None:
    """Give a summarizer the encoders of the authors' pretraining checkpoint; its score layers stay as they are.

    Parameters
    ----------
    state_dict                the authors' key -> numpy array or torch tensor, with or without "video_model." before
                              it; entries that a summarizer does not have are left out

    Raises
    ------
    InputError
        another key is missing, or has another shape; the model is then unchanged
    """
    views = model.reference_views(model.state_dict())
    checkpoint = model.reference_rewritten(state_dict)
    own = {name: view.clone() for name, view in views.items() if name.startswith("score_predict.")}
    models.load_reference_state_dict(model, {name: value for name, value in checkpoint.items() if name in views} | own)


class _Encoder(nn.Module):
    """Transformer layers, normalised after each sum: rows [B, R, D] -> [B, R, D]."""

    frequency: Tensor

    def __init__(self, width: int, n_layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, hidden, dropout) for _ in range(n_layers))
        self.dropout = nn.Dropout(dropout)
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, rows: Tensor, energy_bias: Tensor | None, pos_enc_weight: float) -> Tensor:
        """``energy_bias`` is added to the energies [B, heads, R, R]."""
        _, n_rows, width = rows.shape
        angle = torch.arange(n_rows, device=rows.device).unsqueeze(-1) * self.frequency
        positions = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]
        x: Tensor = self.dropout(rows + pos_enc_weight * positions)
        for layer in self.layers:
            x = layer(x, energy_bias)
        return x


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, energy_bias: Tensor | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1)
        )
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=energy_bias, dropout_p=dropout)
        x = self.norm1(x + self.dropout(self.out_proj(y.transpose(1, 2).flatten(2))))
        y = self.linear2(self.dropout(F.relu(self.linear1(x))))
        z: Tensor = self.norm2(x + self.dropout(y))
        return z


class _Text(nn.Module):
    """Token rows [B, L] of the given lengths -> word outputs [B, L, W] and the pooled output [B, W] of BERT.

    ``project_t_v`` takes both to the width of the video. BERT is frozen but for its pooler.
    """

    def __init__(self, feature_dim: int, encoder: str | Mapping[str, Any] | None, trainable: bool) -> None:
        super().__init__()
        self.bert, self.recipe = bert(encoder)
        self.trainable = trainable
        self.bert.requires_grad_(False)
        assert self.bert.pooler is not None
        self.bert.pooler.requires_grad_(trainable)
        width = self.bert.config.hidden_size
        self.project_t_v = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, feature_dim))

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():
            _check_ids(ids, lengths, self.bert.config)
        output = self.bert(input_ids=ids, attention_mask=valid(lengths, ids.shape[1]).long())
        return output.last_hidden_state, output.pooler_output


def _check_ids(ids: Tensor, lengths: Tensor, config: Any) -> None:
    longest, n_words = config.max_position_embeddings, config.vocab_size
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest or ids.dtype != torch.int64:
        raise InputError(f"text ids: expected int64 [B, L], L of 1..{longest}, got {ids.dtype} {list(ids.shape)}")
    if lengths.shape != ids.shape[:1] or lengths.min() < 1 or lengths.max() > ids.shape[1]:
        raise InputError(f"text lengths: expected {len(ids)} values of 1..{ids.shape[1]}, got {lengths.tolist()}")
    if ids.min() < 0 or ids.max() >= n_words:
        raise InputError(f"text ids: expected ids of 0..{n_words - 1}, got {int(ids.min())}..{int(ids.max())}")


class _Heads(nn.Module):
    """What only pretraining needs."""

    def __init__(self, model: SSPVS, dropout_classifier: float) -> None:
        super().__init__()
        assert model.text is not None
        width = model.feature_dim
        options = model.options
        self.v_mask = nn.Parameter(torch.randn(1, width))
        self.encoder_naive = _Encoder(width, 1, options["nhead_vid"], options["nhid_vid"], options["dropout_vid"])
        self.prob_dist = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 2))
        self.video_decoder = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.video_decoder_naive = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.vid_cls_decoder = nn.Linear(width, width)
        self.classifier = nn.Sequential(
            nn.Linear(model.text.bert.config.hidden_size + width, width),
            nn.ReLU(),
            nn.Dropout(dropout_classifier),
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Dropout(dropout_classifier),
            nn.Linear(width // 2, 1),
        )


_AUTHORS_PREFIXES = {
    "v_cls": "v_cls.weight",
    "v_mask": "v_mask.weight",
    "encoder.": "transformer_encoder.",
    "encoder_naive.": "transformer_encoder_naive.",
    "text.bert.": "bert_",
    "text.": "",
}


def _reference_name(name: str) -> str:
    """The authors' name of a parameter.

    >>> _reference_name("encoder.layers.0.in_proj.bias"), _reference_name("text.bert.pooler.dense.weight")
    ('transformer_encoder.layers.0.self_attn.in_proj_bias', 'bert_pooler.dense.weight')
    """
    for ours, theirs in _AUTHORS_PREFIXES.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return name.replace(".in_proj.", ".self_attn.in_proj_").replace(".out_proj.", ".self_attn.out_proj.")
