from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("pgl_sum")


@pytest.fixture(scope="module")
def model(reference: Any) -> torch.nn.Module:
    model = build("pgl_sum", feature_dim=1024, **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_attention_weights_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    case = reference.file["cases"][0]
    features = torch.full((2, 11, 1024), 7.0)
    features[1, :8] = reference.features(8)
    with torch.no_grad():
        weights = model.attention_weights(features, torch.tensor([11, 8]))  # type: ignore[operator]
    expected = torch.zeros(11, 11)
    expected[:8, :8] = reference.expected(case, "attn")
    torch.testing.assert_close(weights[1], expected, **reference.file["tolerance"]["attn"])


def test_loss_and_gradients_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    (loss,) = reference.file["losses"]
    features, target = reference.features(loss["n_steps"]), torch.from_numpy(reference.arrays["loss/gtscore"])
    model.zero_grad()
    mse = (model(features[None], torch.tensor([loss["n_steps"]])) - target.flatten()).square().mean()
    mse.backward()
    assert mse.item() == pytest.approx(loss["values"]["mse"], rel=1e-4)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    views = model.reference_views(gradients)  # type: ignore[operator]
    assert {key: views[key].norm().item() for key in loss["grad_norms"]} == pytest.approx(loss["grad_norms"], rel=1e-4)
    total = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in views.values()]))
    assert total.item() == pytest.approx(loss["total_grad_norm"], rel=1e-4)


@pytest.mark.usefixtures("unfilled_weights")
def test_every_variant_matches_the_authors_code_in_a_padded_batch(model_golden: Any) -> None:
    reference = model_golden("pgl_sum_variants")
    weights = {
        name: reference.weights(layout, reference.file["overrides"])
        for name, layout in reference.file["layouts"].items()
    }
    worst = {}
    for variant in reference.file["variants"]:
        options = {key: variant[key] for key in ("num_segments", "fusion", "pos_enc", "heads")}
        model = build("pgl_sum", **{**reference.file["config_base"], **options}).eval()
        load_reference_state_dict(model, weights[variant["layout"]])
        features, lengths, expected = reference.batch(variant["cases"])
        with torch.no_grad():
            scores = model(features, lengths)
        worst[variant["id"]] = max(
            (scores[video, :n_steps] - expected[video]).abs().max().item() for video, n_steps in enumerate(lengths)
        )
    tolerance = reference.file["tolerance"]["scores"]["atol"]
    assert len(worst) == len(reference.file["variants"])
    assert {name: error for name, error in worst.items() if not error <= tolerance} == {}


def test_initialisation_is_as_published() -> None:
    model = build("pgl_sum", feature_dim=64)
    views = model.reference_views(model.state_dict())  # type: ignore[operator]
    for key, tensor in views.items():
        if key.endswith("bias"):
            assert (tensor == 0.1).all(), key
        elif "norm" in key:
            assert (tensor == 1).all(), key
        else:
            bound = (2 * 6 / sum(tensor.shape)) ** 0.5  # Xavier uniform, gain sqrt 2, of one head's matrix
            assert 0.9 * bound < tensor.abs().max() <= bound, key


def test_default_model_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in build("pgl_sum").parameters()) == 9_443_329


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_segments": 1}, "num_segments: expected none or an integer >= 2, got 1"),
        ({"fusion": "sum"}, "fusion: expected one of None, add, mult, avg, max, got 'sum'"),
        ({"heads": 0}, "heads: expected a whole number"),
        ({"heads": 2.5}, "heads: expected a whole number, 1 or more, got 2.5"),
        ({"output_size": 4, "heads": 8}, "output_size: 4 is too small for 8 heads"),
        ({"init_type": "normal"}, "init_gain: expected a number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("pgl_sum", feature_dim=8, **options)


def test_dropout_acts_in_training_mode_alone(rng: np.random.Generator) -> None:
    model = build("pgl_sum", feature_dim=32)
    features, lengths = torch.from_numpy(rng.random((2, 20, 32), dtype=np.float32)), torch.tensor([20, 11])
    with torch.no_grad():
        assert not torch.equal(model.train()(features, lengths), model(features, lengths))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.testing.assert_close(model.train()(features, lengths), model.eval()(features, lengths), atol=2e-6, rtol=0)
