"""Training of the SSPVS summarizer as published: windows of 512 steps, squared error of the product of all stages.

Source: Li et al., WACV 2023, and its code. The authors keep the epoch that is best on the test videos; nothing here
looks at those.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.checkpoint import load_checkpoint
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models.bert import RANDOM
from vsum_runtime.training.models.sspvs import SSPVS, start_from_pretraining
from vsum_runtime.training.procedures.tensors import padded
from vsum_runtime.training.texts import Text, read_texts, token_row

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SummarizerConfig:
    """How the summarizer is trained. Adam, constant learning rate, no weight decay, gradients left alone."""

    learning_rate: float = 5e-5
    batch_videos: int = 4
    """Windows per optimiser step; the loss is the mean over all their steps."""
    repeats: int = 1
    """Times that every training video is drawn in an epoch."""
    window_steps: int = 512
    """Steps of a window: a random part of a longer video, zeros after a shorter one, which count like the rest."""
    start: str | None = None
    """Pretraining checkpoint whose encoders are taken: of sspvs_pretrain, or the authors' file. None: from nothing."""
    texts: str | None = None
    """Folder of token-id side files; for a model with text."""
    max_cat: int = 1
    """Token ids of the category in training; at test all fields are as long as they are."""
    max_query: int = 3
    max_title: int = 10


class Summarizer:
    """See ``Procedure``."""

    defaults: ClassVar[SummarizerConfig] = SummarizerConfig()
    labels: tuple[str, ...] = ("gtscore",)
    paced: ClassVar[bool] = False

    def __init__(self, model: SSPVS, config: SummarizerConfig, *, n_epochs: int) -> None:
        if model.text is not None and config.texts is None:
            raise InputError("texts: this SSPVS scores with text; name the folder of token-id side files")
        if config.start is not None:
            start(model, config.start)
        elif model.text is not None and model.text.recipe["weights"] == RANDOM:
            _log.warning(
                "the text encoder is randomly initialised and stays so but for its pooler: %s", model.text.recipe
            )
        self.config = config
        self.networks = nn.ModuleDict({"model": model})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = {"model": torch.optim.Adam(trained, lr=config.learning_rate, fused=True)}
        self._model = model
        self._texts: dict[str, Text] = {}

    def run_epoch(self, videos: Sequence[Video], epoch: int) -> dict[str, float]:
        config, model = self.config, self._model
        device = model.v_cls.device
        model.train()
        losses = []
        order = torch.randperm(config.repeats * len(videos)) % len(videos)
        for batch in order.split(config.batch_videos):
            drawn = [videos[index] for index in batch]
            windows, targets = zip(*(_window(video, config.window_steps) for video in drawn), strict=True)
            lengths = torch.full((len(drawn),), config.window_steps, device=device)
            scores = model(torch.stack(windows).to(device), lengths, self._guides(drawn, cut=True))
            loss = F.mse_loss(scores, torch.stack(targets).to(device))
            self.optimizers["model"].zero_grad(set_to_none=True)
            loss.backward()
            self.optimizers["model"].step()
            losses.append(loss.detach() * len(drawn))
        return {"loss": float(torch.stack(losses).sum() / len(order))}

    @torch.inference_mode()
    def score(self, video: Video) -> NDArray[np.float32]:
        """Scores [T] as at test: the whole video, its text uncut."""
        model = self._model.eval()
        features, lengths = padded([video], model.v_cls.device)
        scores: NDArray[np.float32] = model(features, lengths, self._guides([video], cut=False))[0].cpu().numpy()
        return scores

    def _guides(self, videos: Sequence[Video], *, cut: bool) -> Tensor | None:
        """Text vectors [B, D]; None for a model without text."""
        if self._model.text is None:
            return None
        assert self.config.texts is not None
        new = [video.key for video in videos if video.key not in self._texts]
        self._texts |= read_texts(self.config.texts, new)
        limits = (self.config.max_cat, self.config.max_query, self.config.max_title) if cut else None
        texts = [self._texts[video.key] for video in videos]
        rows = [token_row((text.category, text.query, text.title), limits) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._model.v_cls.device)
        return self._model.encode_text(ids, torch.tensor([len(row) for row in rows], device=ids.device))


def start(model: SSPVS, path: str | Path) -> None:
    """Give a summarizer the encoders of a pretraining checkpoint: a safetensors file of ours, or the authors' file.

    Raises
    ------
    InputError
        neither of them, or one whose encoders differ from the model's
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        weights, metadata = load_checkpoint(path)
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("score_predict.")}
        state = {name: tensor for name, tensor in weights.items() if name in model.state_dict()} | own
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"{path}: its encoders ({metadata['options']}) do not fit {model.options}: {error}"
            ) from None
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: expected a pretraining checkpoint, cannot read it: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(
            f"{path}: expected a pretraining checkpoint with an entry state_dict, got {type(content).__name__}"
        )
    start_from_pretraining(model, content["state_dict"])


def _window(video: Video, n_steps: int) -> tuple[Tensor, Tensor]:
    """Features [n_steps, D] and targets [n_steps] in 0..1 of one window; constant targets become 0."""
    assert video.features is not None
    assert video.gtscore is not None
    features, first = window(video, n_steps)
    target = torch.from_numpy(video.gtscore)[first : first + n_steps]
    target = F.pad(target, (0, n_steps - len(target)))
    target = target - target.min()
    return features, target / target.max() if target.max() > 0 else target


def window(video: Video, n_steps: int) -> tuple[Tensor, int]:
    """A random part of a longer video, a shorter one with zeros after it: features [n_steps, D] and the first step."""
    assert video.features is not None
    features = torch.from_numpy(video.features)
    first = int(torch.randint(max(len(features) - n_steps, 0) + 1, ()))
    features = features[first : first + n_steps]
    return F.pad(features, (0, 0, 0, n_steps - len(features))), first
