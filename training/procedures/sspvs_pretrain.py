"""Self-supervised pretraining of SSPVS as published: match videos and texts, coarsely and finely; recover hidden steps.

Source: Li et al., WACV 2023, and its code. Labels are made here: a video comes with its own text or with another's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Dataset, Video
from vsum_runtime.training.models.bert import RANDOM
from vsum_runtime.training.models.sspvs import SSPVS, Pretraining, SSPVSPretraining
from vsum_runtime.training.procedures.sspvs import window
from vsum_runtime.training.texts import Text, read_texts, token_row

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """How the encoders are pretrained. Adam, constant learning rate; published: 200 epochs."""

    texts: str | None = None
    """Folder of token-id side files, descriptions included. None is refused."""
    learning_rate: float = 1e-6
    batch_videos: int = 16
    """Pairs per optimiser step; published: 8 on each of two devices."""
    repeats: int = 8
    """Times that every training video is drawn in an epoch."""
    window_steps: int = 256
    """Steps of a window: a random part of a longer video, zeros after a shorter one, which count like the rest."""
    max_cat: int = 2
    """Token ids of the category: a longer one is cut at a random place, a shorter one filled up with [PAD]."""
    max_query: int = 2
    max_title: int = 5
    max_description: int = 50
    window_size: int = 9
    """Steps that the neighbourhood guess at the hidden step sees, itself included."""
    dropout_classifier: float = 0.1
    pos_enc_weight: float = 1.0
    """Factor of the sinusoids; the summarizer's own is smaller."""
    alpha1: float = 5.0
    """Weight of the recovery of the hidden step."""
    alpha2: float = 1.0
    """Weight of the fine-grained match."""
    margin: float = 1.414
    """Distance beyond which a video and a foreign text are far enough apart."""


class Pretrainer:
    """See ``Procedure``; the exported scorer's score layers are not trained here."""

    defaults: ClassVar[PretrainConfig] = PretrainConfig()
    labels: tuple[str, ...] = ()
    paced: ClassVar[bool] = False

    def __init__(self, model: SSPVS, config: PretrainConfig, *, n_epochs: int) -> None:
        if config.texts is None:
            raise InputError("texts: pretraining matches videos with texts; name the folder of token-id side files")
        self._network = SSPVSPretraining(
            model,
            window_size=config.window_size,
            dropout_classifier=config.dropout_classifier,
            pos_enc_weight=config.pos_enc_weight,
        )
        assert model.text is not None
        if model.text.recipe["weights"] == RANDOM:
            _log.warning("the text encoder starts from random weights: %s", model.text.recipe)
        self.config = config
        self.networks = nn.ModuleDict({"model": model, "heads": self._network.heads})
        trained = [
            parameter
            for name, parameter in self.networks.named_parameters()
            if parameter.requires_grad and not name.startswith("model.score_predict.")
        ]
        self.optimizers = {"pretraining": torch.optim.Adam(trained, lr=config.learning_rate, fused=True)}
        self._texts: dict[str, Text] = {}

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        self._network.train()
        return self._pass(videos, self.config.repeats, self.optimizers["pretraining"])

    @torch.no_grad()
    def validate(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        """The same means over one pass without training, in evaluation mode."""
        self._network.eval()
        return {f"validation_{name}": value for name, value in self._pass(videos, 1, None).items()}

    def _pass(self, videos: Sequence[Video], repeats: int, optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
        if len(videos) < 2:
            raise InputError(f"pretraining: expected two videos or more, to mismatch texts, got {len(videos)}")
        means: dict[str, list[Tensor]] = {}
        order = torch.randperm(repeats * len(videos)) % len(videos)
        for batch in order.split(self.config.batch_videos):
            terms = self._terms(videos, batch)
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
                terms["loss"].backward()
                optimizer.step()
            for name, value in terms.items():
                means.setdefault(name, []).append(value.detach() * len(batch))
        return {name: float(torch.stack(values).sum() / len(order)) for name, values in means.items()}

    def _terms(self, videos: Sequence[Video], batch: Tensor) -> dict[str, Tensor]:
        """Losses and accuracy of one batch of pairs; who is matched with whom, what is cut and hidden is drawn here."""
        config, device = self.config, self._network.heads.v_mask.device
        features = torch.stack([window(videos[index], config.window_steps)[0] for index in batch]).to(device)
        masked_step = torch.randint(config.window_steps, (len(batch),), device=device)
        matched = torch.rand(len(batch)) < 0.5
        another = (batch + torch.randint(1, len(videos), (len(batch),))) % len(videos)
        ids = self._token_rows([videos[index].key for index in torch.where(matched, batch, another)]).to(device)
        lengths = torch.full((len(batch),), config.window_steps, device=device)
        outcome = self._network(features, lengths, masked_step, ids, torch.full_like(lengths, ids.shape[1]))
        true = features[torch.arange(len(batch), device=device), masked_step]
        labels = matched.to(device)
        terms = losses(outcome, true, labels.float(), alpha1=config.alpha1, alpha2=config.alpha2, margin=config.margin)
        return terms | {"match_accuracy": ((outcome.match > 0) == labels).float().mean()}

    def _token_rows(self, keys: Sequence[str]) -> Tensor:
        config = self.config
        assert config.texts is not None
        self._texts |= read_texts(config.texts, [key for key in keys if key not in self._texts])
        limits = (config.max_cat, config.max_query, config.max_title, config.max_description)
        texts = [self._texts[key] for key in keys]
        return torch.stack(
            [
                token_row((text.category, text.query, text.title, text.description), limits, cut_anywhere=True)
                for text in texts
            ]
        )


def losses(
    outcome: Pretraining, true: Tensor, labels: Tensor, *, alpha1: float, alpha2: float, margin: float
) -> dict[str, Tensor]:
    """The objective ``loss`` = match + alpha1 mask + alpha2 fine, and its terms.

    Parameters
    ----------
    outcome                   of B pairs
    true                      [B, D] features of the hidden steps
    labels                    float [B], 1 where the text is the video's own

    Notes
    -----
    ``match``: binary cross-entropy, coarse. ``mask``: squared error of the recovered step. ``fine``: contrastive, on
    the Hausdorff distance between the video's rows and the text's.
    """
    match = F.binary_cross_entropy_with_logits(outcome.match, labels)
    mask = F.mse_loss(outcome.recovered, true)
    distance = hausdorff(F.normalize(outcome.frames, dim=-1), F.normalize(outcome.words, dim=-1))
    far = (margin - distance).clamp(min=0)
    fine = (labels * distance.square() + (1 - labels) * far.square()).mean()
    return {"loss": match + alpha1 * mask + alpha2 * fine, "match": match, "mask": mask, "fine": fine}


def hausdorff(x: Tensor, y: Tensor) -> Tensor:
    """Symmetric Hausdorff distance [B] between the rows of x [B, R, D] and of y [B, Q, D], Euclidean.

    The larger of: the farthest that a row of x has to its nearest row of y, and the other way round. Its gradient
    passes through that one pair of rows.
    """
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    from_x = distances.min(dim=2).values.max(dim=1).values
    from_y = distances.min(dim=1).values.max(dim=1).values
    return torch.where(from_x > from_y, from_x, from_y)


def published_choice(log: Sequence[Mapping[str, float]]) -> int:
    """The authors' epoch, from 1: the first of best validation match accuracy among every second; the last without any.

    >>> published_choice([{"validation_match_accuracy": a} for a in (0.9, 0.6, 0.8, 0.7, 0.5, 0.7)])
    4
    """
    accuracies = [
        epoch.get("validation_match_accuracy", -1.0) if number % 2 == 0 else -1.0 for number, epoch in enumerate(log, 1)
    ]
    best = max(accuracies)
    return 1 + accuracies.index(best) if best >= 0 else len(log)


def read_feature_files(folder: str | Path, list_file: str | Path) -> Dataset:
    """The pretraining videos: a JSON list of ids, and for each id ``<id>.h5`` with ``features [T, D]``.

    The files say nothing of frames: steps are taken to be every 15th frame, as the authors sampled.

    Raises
    ------
    InputError
        a list that is none, a missing file, or features that are not finite numbers [T, D]
    """
    list_file = Path(list_file)
    try:
        content = list_file.read_bytes()
        keys = json.loads(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{list_file}: expected a JSON list of video ids, cannot read it: {error}") from None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise InputError(f'{list_file}: expected a JSON list of video ids such as ["a1B2", ...]')
    digest, videos = sha256(content), {}
    for key in keys:
        path = Path(folder) / f"{key}.h5"
        with hdf5.open_file(path, "an HDF5 file with features [T, D]") as file:
            stored = hdf5.field(file, "features", str(path))
            if stored is None or len(stored.shape) != 2 or 0 in stored.shape or stored.dtype.kind not in "iuf":
                actual = "none" if stored is None else f"{stored.dtype} {list(stored.shape)}"
                raise InputError(f"{path}: expected an HDF5 file with features [T, D], got {actual}")
            features = stored.read().astype(np.float32)
        if not np.isfinite(features).all():
            raise InputError(f"{path}: expected finite features [T, D], got NaN or infinity")
        digest.update(features.tobytes())
        videos[key] = Video(key, 15 * len(features), np.arange(0, 15 * len(features), 15), features)
    return Dataset(name=list_file.stem, sha256=digest.hexdigest(), source_sha256="", recipe="", videos=videos)
