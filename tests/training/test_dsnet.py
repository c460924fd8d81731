from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.dsnet import proposals

FORMS = ("dsnet_ab", "dsnet_af")


@pytest.fixture(scope="module", params=FORMS)
def reference(request: Any, model_golden: Any) -> Any:
    return model_golden(request.param)


@pytest.fixture(scope="module")
def model(reference: Any) -> torch.nn.Module:
    model = build(reference.file["model"], feature_dim=1024, **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_step_scores_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    features, lengths, expected = reference.batch(reference.file["cases"][:3])
    for found, scores in zip(proposals(model, features, lengths), expected, strict=True):  # type: ignore[arg-type]
        # A last bit may flip the rounding of an end; both networks agree everywhere else.
        assert (np.abs(found.scores - scores.numpy()) <= 2e-5).mean() >= 0.99


@pytest.mark.parametrize("form", FORMS)
def test_one_step_makes_a_proposal(form: str) -> None:
    model = build(form, feature_dim=16).eval()
    (found,) = proposals(model, torch.rand(1, 1, 16), torch.tensor([1]))  # type: ignore[arg-type]
    assert found.scores.shape == (1,)
    assert found.scores[0] > 0


def test_without_anchors_reordering_the_steps_reorders_the_outputs() -> None:
    model = build("dsnet_af", feature_dim=64).eval()
    features, order = torch.rand(30, 64), torch.randperm(30)
    with torch.no_grad():
        outputs = model(torch.stack((features, features[order])), torch.tensor([30, 30]))
    for output in outputs:
        torch.testing.assert_close(output[1], output[0][order], atol=1e-5, rtol=1e-5)


def test_an_odd_anchor_is_centred_on_its_step() -> None:
    model = build("dsnet_ab", feature_dim=16, anchor_scales=[3]).eval()
    with torch.no_grad():
        forth = model(features := torch.rand(1, 9, 16), torch.tensor([9]))
        back = model(features.flip(1), torch.tensor([9]))
    torch.testing.assert_close(back.cls.flip(1), forth.cls)


def test_initialisation_is_as_published() -> None:
    for key, tensor in build("dsnet_ab", feature_dim=64).state_dict().items():
        if "norm" in key or "fc1.3" in key:
            assert (tensor == float("weight" in key)).all(), key
        elif key.endswith("bias"):
            assert (tensor == 0.1).all(), key
        else:
            bound = (2 * 6 / sum(tensor.shape)) ** 0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, key
    model = build("dsnet_af", feature_dim=64)
    assert 0.9 * 64**-0.5 < model.fc1[0].weight.abs().max() <= 64**-0.5  # type: ignore[index]


@pytest.mark.parametrize(("form", "count"), [("dsnet_ab", 4_328_195), ("dsnet_af", 4_328_324)])
def test_default_models_have_the_published_number_of_parameters(form: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in build(form).parameters()) == count


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("dsnet_ab", {"base_model": "lstm"}, "base_model: expected one of attention, got 'lstm'"),
        ("dsnet_ab", {"anchor_scales": []}, "anchor_scales: expected at least one"),
        ("dsnet_ab", {"anchor_scales": [4, 0]}, "anchor_scales: expected a whole number"),
        ("dsnet_af", {"num_head": 3}, "num_head: expected a divisor of the feature size 16, got 3"),
        ("dsnet_af", {"nms_thresh": 1.5}, "nms_thresh: expected a number"),
        ("dsnet_af", {"anchor_scales": [4]}, "unknown option anchor_scales"),
    ],
)
def test_options_out_of_range_are_refused(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(form, feature_dim=16, **options)


def test_weights_of_the_other_form_are_refused() -> None:
    anchored, free = build("dsnet_ab", feature_dim=16), build("dsnet_af", feature_dim=16)
    weights = free.reference_views(free.state_dict())  # type: ignore[operator]
    with pytest.raises(InputError, match=r"unknown fc_ctr\.weight, fc_ctr\.bias"):
        load_reference_state_dict(anchored, weights)
