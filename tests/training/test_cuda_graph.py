"""The scorer that replays CUDA graphs, on the CPU, where nothing is recorded and all else is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import BackendError, InputError
from vsum_runtime.training.cuda_graph import CudaGraphScorer
from vsum_runtime.training.models import build
from vsum_runtime.training.models.batch import values_unread

D = 32


def _inputs(*lengths: int) -> dict[str, np.ndarray]:
    features = np.random.default_rng(0).standard_normal((len(lengths), max(lengths), D), dtype=np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return {"features": features, "lengths": np.array(lengths)}


def _model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, feature_dim=D).eval()


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("csta", (17,)), ("pgl_sum", (21, 5, 9)), ("dsnet_af", (21, 5, 9)), ("ac_sum_gan", (21, 5, 9)), ("ca_sum", (17,))],
)
def test_padding_to_a_shape_changes_no_score(name: str, lengths: tuple[int, ...]) -> None:
    model, inputs = _model(name), _inputs(*lengths)
    with torch.inference_mode():
        expected = model(torch.from_numpy(inputs["features"]), torch.from_numpy(inputs["lengths"]))
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    found = CudaGraphScorer(model, device="cpu", precision="fp32").run(inputs)
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted.numpy(), rtol=0, atol=1e-5)


def test_shorter_request_sees_nothing_of_the_longer_one_before_it() -> None:
    scorer = CudaGraphScorer(_model("vasnet"), device="cpu", precision="fp32")
    (alone,) = scorer.run(_inputs(19, 4))
    scorer.run({**_inputs(30, 30), "features": np.full((2, 30, D), 9.0, np.float32)})
    (after,) = scorer.run(_inputs(19, 4))
    np.testing.assert_array_equal(alone, after)


def test_csta_in_half_precision_has_its_pictures_channels_last_and_stays_near() -> None:
    model, inputs = _model("csta"), _inputs(40)
    half, single = (CudaGraphScorer(model, device="cpu", precision=precision) for precision in ("fp16", "fp32"))
    convolutions = [layer for layer in half._model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert convolutions
    for layer in convolutions:
        assert layer.weight.dtype == torch.float16
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(half.run(inputs)[0], single.run(inputs)[0], rtol=0, atol=2e-2)


def test_half_precision_stays_near_and_leaves_the_model_as_it_was() -> None:
    model, inputs = _model("pgl_sum"), _inputs(40, 25)
    (half,) = CudaGraphScorer(model, device="cpu").run(inputs)
    (single,) = CudaGraphScorer(model, device="cpu", precision="fp32").run(inputs)
    assert 0 < np.abs(half - single).max() < 1e-2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"features": np.zeros((1, 4, D + 1), np.float32), "lengths": np.array([4])}, rf"expected \[B, T, {D}\]"),
        ({"features": np.zeros((2, 4, D), np.float32), "lengths": np.array([4])}, r"\[B\], got"),
        ({"features": np.zeros((1, 4, D), np.float32), "lengths": np.array([5])}, "expected 1 to T=4"),
    ],
)
def test_what_cannot_be_scored_is_refused(inputs: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(InputError, match=told):
        CudaGraphScorer(_model("vasnet"), device="cpu").run(inputs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_error_says_so() -> None:
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        CudaGraphScorer(_model("vasnet"))


def test_models_check_their_input_again_after_an_unread_block() -> None:
    model, features, lengths = _model("vasnet"), torch.zeros(1, 4, D), torch.tensor([9])
    with values_unread(), torch.inference_mode():
        model(features, lengths)
    with pytest.raises(InputError, match="expected 1 to T=4"):
        model(features, lengths)
