from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build
from vsum_runtime.training.procedures.regression import Regression, RegressionConfig
from vsum_runtime.training.procedures.tensors import importance, padded


def test_importance_runs_from_0_to_1(videos: list[Video]) -> None:
    video = replace(videos[0], gtscore=np.array([3.0, 1.0, 2.0, 5.0], np.float32))
    assert importance(video).tolist() == [0.5, 0.0, 0.25, 1.0]
    assert importance(replace(video, gtscore=np.full(3, 7, np.float32))).tolist() == [0, 0, 0]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("average", [True, False])
def test_a_step_follows_the_clipped_mean_or_sum_of_the_videos_gradients(videos: list[Video], average: bool) -> None:
    torch.manual_seed(0)
    model = build("vasnet", feature_dim=8)
    model.dropout.p = 0.0
    config = RegressionConfig(batch_videos=None, average=average, max_grad_norm=0.01, stretch=True)
    losses = []
    for video in videos:
        scores = model(*padded([video], torch.device("cpu")))[0]
        losses.append(torch.nn.functional.mse_loss(scores, importance(video)))
    total = torch.stack(losses).sum() / (len(videos) if average else 1)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    before = weights(model)

    procedure = Regression(model, config, n_epochs=1)
    line = procedure.run_epoch(videos, 1)
    assert line["loss"] == pytest.approx(np.mean([loss.item() for loss in losses]), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert gradient.norm() > 0.01
    state = procedure.optimizers["model"].state
    first_mean = torch.cat([state[parameter]["exp_avg"].flatten() for parameter in model.parameters()])
    expected = 0.01 * gradient / gradient.norm() + config.weight_decay * before
    assert torch.allclose(first_mean, 0.1 * expected, rtol=1e-4, atol=1e-9)  # what Adam keeps of its first gradient


def test_raw_labels_are_the_target_unless_they_are_stretched(videos: list[Video]) -> None:
    halved = [replace(video, gtscore=video.gtscore / 2) for video in videos]
    model = build("vasnet", feature_dim=8)
    model.dropout.p = 0.0
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(seen: list[Video], stretch: bool) -> float:
        model.load_state_dict(start)
        return Regression(model, RegressionConfig(batch_videos=4, stretch=stretch), n_epochs=1).run_epoch(seen, 1)[
            "loss"
        ]

    assert loss(videos, True) == pytest.approx(loss(halved, True), rel=1e-5)
    assert loss(videos, False) != pytest.approx(loss(halved, False), rel=1e-2)
