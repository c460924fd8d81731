from __future__ import annotations

from typing import Any

import pytest
import torch

from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.procedures.ca_sum import length_loss, published_choice, published_sigma


def test_loss_and_gradients_match_the_authors_code(model_golden: Any) -> None:
    reference = model_golden("ca_sum")
    model = build("ca_sum", **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    (case,) = reference.file["losses"]
    scores = model(reference.features(case["n_steps"])[None], torch.tensor([case["n_steps"]]))[0]
    loss = length_loss(scores, case["sigma"])
    loss.backward()
    assert loss.item() == pytest.approx(case["values"]["length_loss"], **tolerance(case))
    gradients = model.reference_views({name: weight.grad for name, weight in model.named_parameters()})  # type: ignore[operator]
    norms = {name: gradients[name].norm().item() for name in case["grad_norms"]}
    assert norms == pytest.approx(case["grad_norms"], **tolerance(case))


def tolerance(case: dict[str, Any]) -> dict[str, float]:
    return {"rel": case["tolerance"]["rtol"], "abs": case["tolerance"]["atol"]}


def log(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss} for loss in losses]


def test_the_chosen_epoch_has_the_least_loss_after_the_first_20() -> None:
    assert published_choice(log(*[0.1] * 20, 0.4, 0.2, 0.3, 0.2)) == 22
    assert published_choice(log(0.3, 0.1, 0.2)) == 2


def test_the_chosen_sigma_improves_most_on_the_untrained_network() -> None:
    logs = {0.5: log(0.1, *[0.05] * 20), 0.7: log(0.3, *[0.1] * 20), 0.9: log(0.5, *[0.45] * 20)}
    assert published_sigma(logs) == 0.7
