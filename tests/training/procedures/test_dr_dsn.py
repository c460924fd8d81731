from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.procedures.dr_dsn import Reinforcement, length_penalty, rewards


def test_rewards_and_penalty_match_the_authors_code(model_golden: Any) -> None:
    reference = model_golden("dr_dsn")
    model = build("dr_dsn", **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    (case,) = reference.file["losses"]
    features = reference.features(case["n_steps"])
    penalty = length_penalty(model(features[None], torch.tensor([case["n_steps"]]))[0], Reinforcement.defaults)
    penalty.backward()
    diversity, representativeness = rewards(features, torch.arange(case["n_steps"]) % 5 == 0)
    found = {
        "length_penalty_beta_0.01_eps_0.5": penalty.item(),
        "reward_div": diversity.item(),
        "reward_rep": representativeness.item(),
        "reward": (diversity + representativeness).item() / 2,
    }
    tolerance = {"rel": case["tolerance"]["rtol"], "abs": case["tolerance"]["atol"]}
    assert found == pytest.approx(case["values"], **tolerance)
    assert model.fc.weight.grad.norm().item() == pytest.approx(case["grad_norms"]["fc.weight"], **tolerance)


def test_rewards_of_a_few_picks_by_hand() -> None:
    features = torch.eye(4)[[0, 1, 0]]  # steps 0 and 2 are the same; squared distance to step 1: 2
    none, one, both = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    assert [value.item() for value in rewards(features, none)] == [0, 0]
    assert [value.item() for value in rewards(features, one)] == pytest.approx([0, torch.tensor(-4 / 3).exp().item()])
    assert [value.item() for value in rewards(features, both)] == pytest.approx([0, torch.tensor(-2 / 3).exp().item()])
    far = rewards(features[[0] * 25], torch.arange(25) % 24 == 0)
    assert [value.item() for value in far] == [1, 1]  # alike, but 24 steps apart


def test_the_learning_rate_falls_after_30_epochs(videos: list[Video]) -> None:
    procedure = Reinforcement(build("dr_dsn", feature_dim=8, hid_dim=4), Reinforcement.defaults, n_epochs=60)
    rates = []
    for epoch in (1, 30, 31, 60):
        procedure.run_epoch(videos[:1], epoch)
        rates.append(procedure.optimizers["model"].param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])


def test_a_baseline_moves_a_tenth_of_the_way_to_the_reward(videos: list[Video]) -> None:
    config = replace(Reinforcement.defaults, learning_rate=0.0)
    procedure = Reinforcement(build("dr_dsn", feature_dim=8, hid_dim=4), config, n_epochs=2)
    log = [procedure.run_epoch(videos[:1], epoch)["reward"] for epoch in (1, 2)]
    baseline = procedure.networks.state_dict()["baselines.value"].item()
    assert baseline == pytest.approx(0.9 * 0.1 * log[0] + 0.1 * log[1], rel=1e-5)
