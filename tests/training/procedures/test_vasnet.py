from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.datasets import Video
from training.models import build
from training.procedures.tensors import importance, padded
from training.procedures.vasnet import Regression


def test_importance_runs_from_0_to_1(videos: list[Video]) -> None:
    video = replace(videos[0], gtscore=np.array([3.0, 1.0, 2.0, 5.0], np.float32))
    assert importance(video).tolist() == [0.5, 0.0, 0.25, 1.0]
    assert importance(replace(video, gtscore=np.full(3, 7, np.float32))).tolist() == [0, 0, 0]


def test_the_loss_of_a_padded_batch_is_the_mean_of_the_videos_own(videos: list[Video]) -> None:
    model = build("vasnet", feature_dim=8)
    model.dropout.p = 0.0
    expected = []
    for video in videos:
        scores = model(*padded([video], torch.device("cpu")))[0]
        expected.append(torch.nn.functional.mse_loss(scores, importance(video)).item())
    config = replace(Regression.defaults, batch_videos=len(videos))
    assert Regression(model, config, n_epochs=1).run_epoch(videos, 1) == {
        "loss": pytest.approx(np.mean(expected), rel=1e-5)
    }
