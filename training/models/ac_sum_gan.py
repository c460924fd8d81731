"""AC-SUM-GAN: a bidirectional LSTM scores the steps; an actor then picks fragments of the video to be weighed up.

Source: Apostolidis et al., "AC-SUM-GAN: Connecting Actor-Critic and Generative Adversarial Networks for Unsupervised
Video Summarization", IEEE TCSVT 31(8), 2021. ``ACSUMGAN`` is what scores videos. What its training needs besides it is
in ``Networks``: a variational autoencoder that rebuilds the weighed steps, a discriminator, a critic.

Departures from the authors' code: the score is the importance itself, which is the same at every call; the published
test path, which weighs importance by fragments that the actor draws at random, is ``mode="sample"`` with a seed. Videos
come in padded batches. Fewer steps than fragments, where the original's test path stops with NaN, are scored without
weights.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.batch import check_batch, take_rows, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import choice, chosen, whole
from vsum_runtime.training.models.recurrent import BiLSTM

_SUMMARY_SHARE = 0.15  # of the fragments: how many an episode may pick


class ACSUMGAN(nn.Module):
    """Features float32 [B, T, D], lengths int64 [B] -> scores float32 [B, T], 0 in the padding.

    Parameters
    ----------
    feature_dim : int
        D
    hidden_size : int
        H, of every LSTM
    num_layers : int
        of the scorer
    action_state_size : int
        fragments per video, n
    termination_point : int
        picks per episode; None: 15 % of n
    mode                      "scores": importance, in (0, 1); "greedy": weighed by the actor's preferred fragments,
                              each picked once; "sample": weighed by fragments drawn from the actor, as published.
                              Weighed scores lie between 0 and 1 + picks / n
    seed : int
        of the draws of "sample"; every video is given the same noise, so that its score does not depend on what else is
        in the batch
    """

    output = "scores"
    gumbel: Tensor
    card = Card("unsupervised", "AC-SUM-GAN, IEEE TCSVT", 2021, "academic, non-commercial")

    def __init__(
        self,
        feature_dim: int,
        *,
        hidden_size: int = 512,
        num_layers: int = 2,
        action_state_size: int = 60,
        termination_point: int | None = None,
        mode: str = "scores",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.hidden_size = whole("hidden_size", hidden_size, least=1)
        self.num_layers = whole("num_layers", num_layers, least=1)
        self.action_state_size = whole("action_state_size", action_state_size, least=2)
        n_picks = max(1, int(_SUMMARY_SHARE * self.action_state_size))
        self.termination_point = whole("termination_point", termination_point, n_picks, least=1)
        if self.termination_point > self.action_state_size:
            raise InputError(
                f"termination_point: expected at most {self.action_state_size} picks, got {self.termination_point}"
            )
        self.mode = choice("mode", mode, ("scores", "greedy", "sample"))
        self.seed = whole("seed", seed, least=0)
        self.compress = nn.Linear(feature_dim, self.hidden_size)
        self.lstm = BiLSTM(self.hidden_size, self.hidden_size, n_layers=self.num_layers)
        self.regress = nn.Linear(2 * self.hidden_size, 1)
        self.actor = _dense(self.action_state_size, 512, 1024, 512, self.action_state_size)
        generator = torch.Generator().manual_seed(self.seed)
        exponential = torch.empty(self.termination_point, self.action_state_size).exponential_(generator=generator)
        self.register_buffer("gumbel", -exponential.log(), persistent=False)

    options = property(chosen)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        check_batch(features, lengths, self.feature_dim, self.compress.weight.dtype)
        importance = self.importance(self.compressed(features, lengths), lengths)
        if self.mode == "scores":
            return importance
        episode = self.episode(importance, lengths)
        for step in range(self.termination_point):
            logits = self.actor(episode.state)
            if self.mode == "greedy":
                logits = logits.masked_fill(~episode.unpicked, -torch.inf)
            else:
                logits = logits + self.gumbel[step]  # the largest is then a draw from softmax(logits)
            episode.pick(logits.argmax(dim=-1))
        return importance * episode.weights()

    def compressed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, H], whatever stands in the padding."""
        padding = ~valid(lengths, features.shape[1])
        return self.compress(features.masked_fill(padding[..., None], 0.0))

    def importance(self, compressed: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, H] -> [B, T] in (0, 1), 0 in the padding."""
        importance = torch.sigmoid(self.regress(self.lstm(compressed, lengths))).squeeze(-1)
        return importance.masked_fill(~valid(lengths, compressed.shape[1]), 0.0)

    def episode(self, importance: Tensor, lengths: Tensor) -> Episode:
        """Before the first pick."""
        return Episode(importance, lengths, self.action_state_size, self.termination_point)

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        views = {f"0.{part}": tensors[f"compress.{part}"] for part in ("weight", "bias")}
        views |= {f"1.s_lstm.lstm.{key}": view for key, view in self.lstm.torch_views(tensors, "lstm").items()}
        views |= {f"1.s_lstm.out.0.{part}": tensors[f"regress.{part}"] for part in ("weight", "bias")}
        return views | _dense_views(tensors, "actor", "3")

    def reference_unused(self) -> dict[str, Tensor | None]:
        """The authors' file holds the networks of training too."""
        return {"1.vae.": None, "2.": None, "4.": None}


def fragments(lengths: Tensor, n_fragments: int) -> Tensor:
    """The authors' fragments of videos of ``lengths`` [B] steps: half-open step ranges int64 [B, n, 2].

    For n < length < 2n the authors' rule leaves the last step in no fragment; below n, fragments may be empty. Where a
    fragment ends depends on rounding errors of float64, so this is their formula operation by operation.
    """
    size = lengths.double()[:, None] / n_fragments
    share = size - size.floor()
    n_small = torch.round((1 - share) * n_fragments)
    shift = torch.trunc(n_fragments * (1 - share) / 2)
    order = torch.arange(n_fragments, device=lengths.device)
    turned = order + shift
    turned = torch.where(turned >= n_fragments, turned - n_fragments, turned)
    sizes = torch.where(turned < n_small, size.floor(), size.ceil()).long()
    sizes = torch.where((order == n_fragments // 2) & (sizes[:, -1:] == 1), 1, sizes)
    ends = sizes.cumsum(dim=1)
    return torch.stack((ends - sizes, ends), dim=-1)


class Episode:
    """What an actor has picked so far in each video of a batch.

    Attributes
    ----------
    state : [B, n]
        what the actor sees: mean importance of each fragment, 0 once picked
    unpicked : bool [B, n]
    counts : bool [B]
        False for videos of fewer steps than fragments: they have no episode, weights are 1
    """

    def __init__(self, importance: Tensor, lengths: Tensor, n_fragments: int, n_picks: int) -> None:
        step = torch.arange(importance.shape[1], device=lengths.device)
        start, end = fragments(lengths, n_fragments).unbind(dim=-1)
        self._within = ((step >= start[..., None]) & (step < end[..., None])).to(importance.dtype)  # [B, n, T]
        n_steps = self._within.sum(dim=-1)
        self.state = (self._within @ importance[..., None]).squeeze(-1) / n_steps.clamp(min=1)
        self.unpicked = torch.ones_like(self.state, dtype=torch.bool)
        self.counts = lengths >= n_fragments
        self._n_picks = n_picks
        self._n_picked = torch.zeros_like(self.state[:, :1])
        self._rest = (n_fragments - n_picks) / n_fragments
        self._weight = torch.full_like(self.state, self._rest)

    def pick(self, action: Tensor) -> Tensor:
        """Take one fragment per video, int64 [B]; returns bool [B], False where it had been picked before.

        Earlier picks weigh more. A repeated pick changes nothing.
        """
        n_fragments = self.state.shape[1]
        new = (torch.arange(n_fragments, device=action.device) == action[:, None]) & self.unpicked
        weight = 1 + (self._n_picks - self._n_picked) / (n_fragments - self._n_picked)
        self._weight = torch.where(new, weight, self._weight)
        self._n_picked = self._n_picked + new.sum(dim=1, keepdim=True)
        self.unpicked = self.unpicked & ~new
        self.state = self.state * self.unpicked
        return new.any(dim=1)

    def weights(self) -> Tensor:
        """Factors of the steps' importance, [B, T]."""
        weights = self._rest + ((self._weight - self._rest)[:, None] @ self._within).squeeze(1)
        return torch.where(self.counts[:, None], weights, 1.0)


class Autoencoder(nn.Module):
    """The variational autoencoder: steps [B, T, H] -> steps rebuilt [B, T, H], mean and log variance [2, B, H].

    The decoder starts from both layers' last states, emits the hidden states of its upper cell, last step first, and
    feeds them back through a linear layer.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(hidden_size, hidden_size, num_layers=2, batch_first=True)
        self.mean = nn.Linear(hidden_size, hidden_size)
        self.variance = nn.Linear(hidden_size, hidden_size)
        self.decoder = nn.ModuleList(nn.LSTMCell(hidden_size, hidden_size) for _ in range(2))
        self.feedback = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, lengths: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``noise`` [2, B, H]: standard normal numbers."""
        hidden, cell = _last_states(self.encoder, x, lengths)
        mean, log_variance = self.mean(hidden), F.softplus(self.variance(hidden)).log()
        hidden = mean + noise * (log_variance / 2).exp()
        lower, upper = zip(hidden, cell, strict=True)
        emitted, fed = [], torch.zeros_like(x[:, 0])
        for _ in range(x.shape[1]):
            lower = self.decoder[0](fed, lower)
            upper = self.decoder[1](lower[0], upper)
            emitted.append(upper[0])
            fed = self.feedback(upper[0])
        step = torch.arange(x.shape[1], device=x.device)
        mirrored = (lengths[:, None] - 1 - step).clamp(min=0)
        return take_rows(torch.stack(emitted, dim=1), mirrored), mean, log_variance


class Discriminator(nn.Module):
    """Steps [B, T, H] -> the last hidden state [B, H] and the probability [B] that they are no reconstruction."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers=2, batch_first=True)
        self.classify = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = _last_states(self.lstm, x, lengths)[0][-1]
        return hidden, torch.sigmoid(self.classify(hidden)).squeeze(-1)


class Networks(nn.ModuleDict):
    """All that is trained: ``model``, ``autoencoder``, ``discriminator`` and ``critic`` (state [B, n] -> [B, 1])."""

    def __init__(self, model: ACSUMGAN) -> None:
        super().__init__(
            {
                "model": model,
                "autoencoder": Autoencoder(model.hidden_size),
                "discriminator": Discriminator(model.hidden_size),
                "critic": _dense(model.action_state_size, 512, 1024, 512, 256, 1),
            }
        )
        self.options = model.options

    def reference_views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        model = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        renamed = {
            "1.vae.e_lstm.lstm": "autoencoder.encoder",
            "1.vae.e_lstm.linear_mu": "autoencoder.mean",
            "1.vae.e_lstm.linear_var": "autoencoder.variance",
            "1.vae.d_lstm.lstm_cell.layers": "autoencoder.decoder",
            "1.vae.d_lstm.out": "autoencoder.feedback",
            "2.cLSTM.lstm": "discriminator.lstm",
            "2.out.0": "discriminator.classify",
        }
        views = cast(ACSUMGAN, self["model"]).reference_views(model)
        for theirs, ours in renamed.items():
            views |= {theirs + key.removeprefix(ours): tensors[key] for key in tensors if key.startswith(f"{ours}.")}
        return views | _dense_views(tensors, "critic", "4")

    def reference_unused(self) -> dict[str, Tensor | None]:
        return {}


def _dense(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _dense_views(tensors: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """``actor.2.weight`` -> ``3.linear2.weight``"""
    views = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{ours}."):
            _, index, part = key.split(".")
            views[f"{theirs}.linear{int(index) // 2 + 1}.{part}"] = tensor
    return views


def _last_states(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state of every layer after each sequence's last row, [layers, B, H]."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states: tuple[Tensor, Tensor] = lstm(packed)[1]
    return states
