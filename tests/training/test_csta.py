from __future__ import annotations

from typing import Any

import pytest
import torch

from runtime.errors import InputError
from training.models import build, load_reference_state_dict


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("csta")


@pytest.fixture
def model(reference: Any) -> torch.nn.Module:
    model = build("csta").eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_scores_match_the_authors_code_alone(reference: Any, model: torch.nn.Module) -> None:
    for case in [*reference.file["cases"], *reference.file["extension_cases"]]:
        features = reference.features(case["n_steps"])
        with torch.no_grad():
            scores = model(features[None], torch.tensor([case["n_steps"]]))
        torch.testing.assert_close(scores[0], reference.expected(case), **reference.file["tolerance"]["scores"])


def test_scores_match_the_authors_code_in_a_padded_batch(reference: Any, model: torch.nn.Module) -> None:
    cases = [*reference.file["cases"], *reference.file["extension_cases"]]
    features, lengths, expected = reference.batch([case for case in cases if case["n_steps"] < 320])
    with torch.no_grad():
        scores = model(features, lengths)
    for video, n_steps in enumerate(lengths.tolist()):
        torch.testing.assert_close(scores[video, :n_steps], expected[video], **reference.file["tolerance"]["scores"])
        assert not scores[video, n_steps:].any()


def test_scores_without_overrides_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], {}))
    for case in reference.file["plain_cases"]:
        features = reference.features(case["n_steps"])
        with torch.no_grad():
            scores = model(features[None], torch.tensor([case["n_steps"]]))
        torch.testing.assert_close(scores[0], reference.expected(case), **reference.file["tolerance"]["plain"])


@pytest.mark.parametrize("key", ["losses", "train_mode"])
def test_loss_and_gradients_match_the_authors_code(reference: Any, model: torch.nn.Module, key: str) -> None:
    (case,) = reference.file[key]
    prefix, tolerance = ("train", "train_mode_scores") if key == "train_mode" else ("loss", "scores")
    model.train(key == "train_mode")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    target = torch.from_numpy(reference.arrays[f"{prefix}/gtscore"]).flatten()
    scores = model(reference.features(case["n_steps"])[None], torch.tensor([case["n_steps"]]))[0]
    expected = torch.from_numpy(reference.arrays[f"{prefix}/scores"]).flatten()
    torch.testing.assert_close(scores.detach(), expected, **reference.file["tolerance"][tolerance])
    mse = (scores - target).square().mean()
    mse.backward()
    assert mse.item() == pytest.approx(case["values"]["mse"], rel=2e-3)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    views = model.reference_views(gradients)  # type: ignore[operator]
    assert {name: views[name].norm().item() for name in case["grad_norms"]} == pytest.approx(
        case["grad_norms"], rel=2e-3
    )
    total = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in views.values()]))
    assert total.item() == pytest.approx(case["total_grad_norm"], rel=2e-3)
    buffers = model.reference_views(model.state_dict())  # type: ignore[operator]
    after = case.get("buffers_after", {})
    assert {name: buffers[name].norm().item() for name in after} == pytest.approx(after, rel=2e-3)
    assert buffers["googlenet.conv1.bn.num_batches_tracked"] == case.get("num_batches_tracked", 0)


def test_a_batch_in_training_mode_is_refused() -> None:
    model = build("csta", feature_dim=32).train()
    with pytest.raises(InputError, match=r"expected one video, got a batch of 2; .*call the model once a video"):
        model(torch.zeros(2, 20, 32), torch.tensor([20, 17]))
