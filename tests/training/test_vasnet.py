from __future__ import annotations

from typing import Any

import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("vasnet")


@pytest.fixture(scope="module")
def model(reference: Any) -> torch.nn.Module:
    model = build("vasnet", feature_dim=1024, **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_loss_and_gradients_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    (loss,) = reference.file["losses"]
    target = torch.from_numpy(reference.arrays["loss/gtscore"])
    target = (target - target.min()) / (target.max() - target.min())
    model.zero_grad()
    scores = model(reference.features(loss["n_steps"])[None], torch.tensor([loss["n_steps"]]))
    mse = torch.nn.functional.mse_loss(scores[0], target)
    mse.backward()
    assert mse.item() == pytest.approx(loss["values"]["mse"], rel=1e-4)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    views = model.reference_views(gradients)  # type: ignore[operator]
    assert {key: views[key].norm().item() for key in loss["grad_norms"]} == pytest.approx(loss["grad_norms"], rel=1e-4)


def test_reordering_the_steps_reorders_the_scores(reference: Any, model: torch.nn.Module) -> None:
    features, order = reference.features(60), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(torch.stack((features, features[order])), torch.tensor([60, 60]))
    torch.testing.assert_close(scores[1], scores[0][order], atol=2e-6, rtol=0)


def test_one_step_is_scored_and_a_constant_row_has_a_gradient() -> None:
    model = build("vasnet", feature_dim=8)
    scores = model(torch.zeros(1, 1, 8), torch.tensor([1]))  # every row that the first norm sees is constant
    scores.sum().backward()
    assert scores.shape == (1, 1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_initialisation_is_as_published() -> None:
    model = build("vasnet", feature_dim=64)
    for key, tensor in model.state_dict().items():
        if key.endswith("bias"):
            assert (tensor == 0.1).all(), key
        elif "norm" in key:
            assert (tensor == float("gamma" in key)).all(), key
        else:
            bound = (2 * 6 / sum(tensor.shape)) ** 0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, key


def test_default_model_has_the_published_number_of_parameters_less_those_never_used() -> None:
    assert sum(parameter.numel() for parameter in build("vasnet").parameters()) == 7_348_225 - 2_099_200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aperture": 250}, "aperture: expected one of None, got 250"),
        ({"ignore_itself": True}, "ignore_itself: expected False"),
        ({"hidden_size": 1}, "hidden_size: expected a whole number"),
        ({"feature_dim": 1}, "feature_dim: expected at least 2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("vasnet", **{"feature_dim": 8, **options})
