from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build
from vsum_runtime.training.procedures.fcsn import KeyFrames, balanced_cross_entropy, key_steps


@pytest.fixture
def video() -> Video:
    """Ten steps in four shots; the budget is 22 frames."""
    shots = np.array([[0, 45], [45, 60], [60, 75], [75, 150]])
    score = np.array([0.9, 0.1, 0.1, 0.8, 0.5, 0, 0, 0, 0, 1.0], dtype=np.float32)
    return Video(key="video_1", n_frames=150, picks=np.arange(10) * 15, gtscore=score, shots=shots)


def test_key_steps_are_those_of_the_best_shots_within_the_budget(video: Video) -> None:
    assert key_steps(video).nonzero()[0].tolist() == [3]


def test_a_video_without_shots_that_fit_keeps_its_best_steps(video: Video) -> None:
    assert key_steps(replace(video, shots=np.array([[0, 150]]))).nonzero()[0].tolist() == [9]


def test_both_kinds_of_step_weigh_the_same() -> None:
    logits = torch.randn(2, 8)
    keys = torch.tensor([True, True] + [False] * 6)
    log_likelihood = logits.log_softmax(dim=0)
    expected = -(log_likelihood[1, :2].mean() + log_likelihood[0, 2:].mean()) / 2
    torch.testing.assert_close(balanced_cross_entropy(logits, keys), expected)
    one_kind = balanced_cross_entropy(logits, torch.zeros(8, dtype=torch.bool))
    torch.testing.assert_close(one_kind, -log_likelihood[0].mean())


@pytest.mark.usefixtures("narrow_fcsn")
def test_training_learns_to_tell_key_frames(videos: list[Video]) -> None:
    torch.manual_seed(0)
    config = replace(KeyFrames.defaults, learning_rate=0.03, batch_videos=4, sampled_steps=64)
    procedure = KeyFrames(build("fcsn", feature_dim=8), config, n_epochs=20)
    log = [procedure.run_epoch(videos, epoch)["cross_entropy"] for epoch in range(1, 21)]
    assert log[-1] < 0.95 * log[0]
