"""VSLUD: a key-frame selector that learns from videos and from summaries of other videos.

Source: Rochan and Wang, "Video Summarization by Learning from Unpaired Data", CVPR 2019 (UnpairedVSN). The authors
published neither code nor weights; layouts are those of a community code. ``VSLUD`` is the selector: the scorer is an
FCSN, and a branch that only training uses rebuilds the features of what was selected. ``SummaryDiscriminator`` tells
rebuilt summaries from human ones.

Departures from that code, none of which changes a score: those of ``FCSN``; spectral norm, which the paper does not
have, is an option and off by default, and weights that were trained with it are folded as they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as _spectral_norm

from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.fcsn import FCSN, Encoder, MaskedNorm
from vsum_runtime.training.models.options import chosen, flag

_DISCRIMINATOR_PREFIX = "FCSN_ENC."


class VSLUD(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T] in (0, 1), 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    n_class, variant, dropout as ``FCSN`` takes them
    spectral_norm : bool
        divide the weights of every convolution of the FCSN by their largest singular value
    """

    output = "scores"
    card = Card("weakly supervised", "UnpairedVSN, CVPR", 2019, "no code of the authors; community code unlicensed")

    def __init__(
        self,
        feature_dim: int,
        *,
        n_class: int = 2,
        variant: str = "A",
        dropout: float = 0.5,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.fcsn = FCSN(feature_dim, n_class=n_class, variant=variant, dropout=dropout)
        self.n_class, self.variant, self.dropout = self.fcsn.options.values()
        folded = str(spectral_norm).startswith("folded")  # so a configuration says that it is in the weights already
        self.spectral_norm = not folded and flag("spectral_norm", spectral_norm)
        self.conv_reconstuct1 = nn.Conv1d(2, feature_dim, 1)
        self.bn_reconstruct1 = MaskedNorm(feature_dim)
        self.conv_reconstuct2 = nn.Conv1d(feature_dim, feature_dim, 1)
        self.bn_reconstruct2 = MaskedNorm(feature_dim)
        if self.spectral_norm:
            _normalise(self.fcsn)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        scores: Tensor = self.fcsn(features, lengths)
        return scores

    def logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[B, 2, T]: no key frame, key frame; what stands in the padding means nothing."""
        return self.fcsn.logits(features, lengths)

    def reconstruct(self, features: Tensor, logits: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """Features of the summary, [B, T, D]: input features merged with decoded scores, both times ``mask`` [B, T]."""
        selected = features.mT * mask[:, None]
        decoded = self.conv_reconstuct1(logits * mask[:, None])
        decoded = F.relu(self.bn_reconstruct1(decoded, lengths))
        merged = self.conv_reconstuct2(decoded + selected)
        return F.relu(self.bn_reconstruct2(merged, lengths)).mT

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {_named_as_hook(key): tensor for key, tensor in tensors.items()}
        ours = {key.removeprefix("fcsn."): tensor for key, tensor in tensors.items() if key.startswith("fcsn.")}
        views = self.fcsn.reference_views(ours)
        for key, tensor in tensors.items():
            if "recons" in key:
                views[key] = tensor.unsqueeze(2) if tensor.ndim == 3 else tensor
        return views

    def reference_unused(self) -> dict[str, Tensor | None]:
        """Three batch norms that are made and never called."""
        return {"bn_score_fr.": None, "bn_upscore2.": None, "bn_upscore16.": None}

    def reference_rewritten(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        state_dict = state_dict.get("S_K_state_dict", state_dict)
        return _rewritten(state_dict, fold=not self.spectral_norm)


class SummaryDiscriminator(nn.Module):
    """Features float32 [B, K, D] of summaries, lengths int64 [B] -> the probability [B] that a human made them."""

    def __init__(
        self, feature_dim: int, *, variant: str = "A", dropout: float = 0.5, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.variant, self.dropout, self.spectral_norm = variant, dropout, spectral_norm
        self.encoder = Encoder(feature_dim, variant, dropout)
        self.linear = nn.Linear(cast(nn.Conv1d, self.encoder["fc7"]).out_channels, 1)
        if spectral_norm:
            _normalise(self.encoder)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return torch.sigmoid(self.logit(features, lengths))

    def logit(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.linear(self.encode(features, lengths)).squeeze(-1)

    def encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Mean over time of the top of the encoder, [B, 4096]."""
        _, _, top, n_top = self.encoder(features, lengths)
        return top.sum(dim=2) / n_top[:, None]

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        views = {}
        for key, tensor in tensors.items():
            name = _named_as_hook(key)
            name = name.replace("encoder.", _DISCRIMINATOR_PREFIX, 1)
            views[name] = tensor.unsqueeze(2) if tensor.ndim == 3 else tensor
        return views

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}

    def reference_rewritten(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        state_dict = state_dict.get("S_D_state_dict", state_dict)
        return _rewritten(state_dict, fold=not self.spectral_norm)


def _normalise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            _spectral_norm(layer)


def _named_as_hook(key: str) -> str:
    """Names of PyTorch's parametrised spectral norm -> those of its older hook.

    >>> _named_as_hook("fc6.parametrizations.weight.0._u")
    'fc6.weight_u'
    """
    return key.replace("parametrizations.weight.original", "weight_orig").replace(
        "parametrizations.weight.0._", "weight_"
    )


def _rewritten(state_dict: Mapping[str, Any], *, fold: bool) -> dict[str, Any]:
    """A layer that has two names keeps the first; ``sn1_1`` is ``conv1_1``, and its values count as they are read last.
    With ``fold`` a spectrally normalised weight becomes one tensor again.
    """
    tensors: dict[str, Any] = {}
    for aliases in (False, True):
        for key, value in state_dict.items():
            prefix = _DISCRIMINATOR_PREFIX if key.startswith(_DISCRIMINATOR_PREFIX) else ""
            name = key.removeprefix(prefix)
            if name.startswith("sn") is aliases:
                tensors[prefix + _unaliased(name)] = value
    for key in [key for key in tensors if fold and key.endswith(".weight_orig")]:
        layer = key.removesuffix("_orig")
        weight, u, v = (torch.as_tensor(tensors.pop(layer + part)) for part in ("_orig", "_u", "_v"))
        matrix = (weight.transpose(0, 1) if "upscore" in layer else weight).flatten(1)
        tensors[layer] = weight / (u @ matrix @ v)
    return tensors


def _unaliased(name: str) -> str:
    """
    >>> [_unaliased(name) for name in ("sn1_2.bias", "sn6.bias", "sn_score_fr.bias", "bn1_2.bias")]
    ['conv1_2.bias', 'fc6.bias', 'score_fr.bias', 'bn1_2.bias']
    """
    if name.startswith("sn_"):
        return name[3:]
    if name.startswith("sn"):
        return ("conv" if "_" in name.partition(".")[0] else "fc") + name[2:]
    return name
