"""What every procedure of this folder must do, whatever it optimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.resuming import assert_resumes
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build
from vsum_runtime.training.procedures import ac_sum_gan, ca_sum, dr_dsn, dsnet, regression

Make = Callable[[], Any]

OPTIONS = {
    "ac_sum_gan": {"hidden_size": 8, "action_state_size": 20},
    "dsnet_ab": {"num_head": 2, "num_hidden": 16},
    "dsnet_af": {"num_head": 2, "num_hidden": 16},
}


def maker(model: str, procedure: Any, **config: Any) -> Make:
    def make() -> Any:
        torch.manual_seed(0)
        options = OPTIONS.get(model, {})
        network = build(model, feature_dim=8, **options)
        if model == "dr_dsn":
            network.fc.bias.data.fill_(-3)  # keeps so few steps that the rewards' noise cannot hide what is learned
        return procedure(network, replace(procedure.defaults, **config), n_epochs=30)

    return make


CASES = [
    pytest.param(maker("ac_sum_gan", ac_sum_gan.ActorCriticGAN, learning_rate=1e-3), "", -1, id="ac_sum_gan"),
    pytest.param(maker("vasnet", regression.Regression, learning_rate=1e-3), "gtscore", -1, id="vasnet"),
    pytest.param(maker("vasnet", regression.Regression, learning_rate=1e-3, batch_videos=3), "gtscore", -1, id="batch"),
    pytest.param(maker("dsnet_ab", dsnet.AnchorBased, learning_rate=1e-3), "gtscore shots", -1, id="dsnet_ab"),
    pytest.param(maker("dsnet_af", dsnet.AnchorFree, learning_rate=1e-3), "gtscore shots", -1, id="dsnet_af"),
    pytest.param(maker("ca_sum", ca_sum.Length, sigma=0.9), "", -1, id="ca_sum"),
    pytest.param(maker("dr_dsn", dr_dsn.Reinforcement, learning_rate=1e-3), "", 1, id="dr_dsn"),
]


@pytest.mark.parametrize(("make", "labels", "sign"), CASES)
def test_training_improves_its_own_objective_with_the_labels_it_names(
    make: Make, labels: str, sign: int, videos: list[Video]
) -> None:
    procedure = make()
    assert procedure.labels == tuple(labels.split())
    unlabelled = {name: None for name in ("gtscore", "shots") if name not in procedure.labels}
    seen = [replace(video, **unlabelled) for video in videos]
    log = [procedure.run_epoch(seen, epoch) for epoch in range(1, 31)]
    assert all(torch.isfinite(parameter).all() for parameter in procedure.networks.parameters())
    headline = [sign * next(iter(line.values())) for line in log]
    assert sum(headline[-5:]) > sum(headline[:5])


@pytest.mark.parametrize(("make", "labels", "sign"), CASES)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(
    make: Make, labels: str, sign: int, videos: list[Video]
) -> None:
    assert_resumes(make, videos)
