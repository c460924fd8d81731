from __future__ import annotations

from typing import Any

import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build


def test_reordering_the_steps_of_a_block_reorders_their_scores() -> None:
    model = build("ca_sum", feature_dim=32, block_size=10).eval()
    features = torch.rand(25, 32)
    order = torch.cat((torch.randperm(10), torch.arange(10, 25)))
    with torch.no_grad():
        scores = model(torch.stack((features, features[order])), torch.tensor([25, 25]))
    torch.testing.assert_close(scores[1], scores[0][order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 2, 60, 61, 150])
def test_a_still_video_has_finite_scores_and_gradients(n_steps: int) -> None:
    model = build("ca_sum", feature_dim=32)
    scores = model(torch.rand(1, 1, 32).repeat(1, n_steps, 1), torch.tensor([n_steps]))
    scores.sum().backward()
    assert torch.isfinite(scores).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_still_video_scores_alike_alone_and_in_a_padded_batch() -> None:
    model = build("ca_sum", feature_dim=1024).eval()
    features = torch.nn.functional.normalize(torch.rand(1, 1, 1024), dim=-1).repeat(2, 100, 1)
    features[0] = torch.rand(100, 1024)
    padded = torch.cat((features, torch.randn(2, 30, 1024)), dim=1)
    with torch.no_grad():
        alone = model(features[1:], torch.tensor([100]))[0]
        among = model(padded, torch.tensor([130, 100]))[1, :100]
    torch.testing.assert_close(among, alone, atol=2e-5, rtol=0)


def test_initialisation_is_as_published() -> None:
    for key, tensor in build("ca_sum", feature_dim=64).state_dict().items():
        if key.endswith("bias"):
            assert (tensor == 0.1).all(), key
        elif "norm" in key:
            assert (tensor == 1).all(), key
        else:
            bound = (2 * 6 / sum(tensor.shape)) ** 0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, key


def test_default_model_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in build("ca_sum").parameters()) == 5_251_073


@pytest.mark.parametrize("options", [{"block_size": 0}, {"output_size": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected a whole number"):
        build("ca_sum", feature_dim=8, **options)
