from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.fcsn import MaskedNorm


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("fcsn1d")


@pytest.fixture(scope="module")
def model(reference: Any) -> torch.nn.Module:
    model = build("fcsn", feature_dim=1024, n_class=reference.file["config"]["n_class"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


@pytest.mark.parametrize("variant", ["A", "B"])
def test_any_number_of_steps_scores_alike_alone_and_in_a_padded_batch(variant: str) -> None:
    model = build("fcsn", feature_dim=4, variant=variant).eval()
    lengths = torch.tensor([1, 2, 16, 17, 26, 27, 33, 64, 97])
    features = torch.randn(len(lengths), 97, 4)
    with torch.no_grad():
        batch = model(features, lengths)
        for video, n_steps in enumerate(lengths.tolist()):
            alone = model(features[video : video + 1, :n_steps], lengths[video : video + 1])[0]
            torch.testing.assert_close(batch[video, :n_steps], alone, atol=1e-6, rtol=0)
            assert not batch[video, n_steps:].any()


def test_batch_norm_in_training_counts_what_is_valid_and_nothing_else() -> None:
    ours, theirs = MaskedNorm(3), nn.BatchNorm1d(3)
    x, lengths = torch.randn(2, 3, 7), torch.tensor([7, 4])
    valid = torch.cat((x[0], x[1, :, :4]), dim=1)[None]
    y, expected = ours(x, lengths), theirs(valid)
    torch.testing.assert_close(torch.cat((y[0], y[1, :, :4]), dim=1)[None], expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    before = ours.running_mean.clone()
    one = ours(x[:1, :, :1], torch.tensor([1]))  # nn.BatchNorm1d refuses it
    torch.testing.assert_close(one, ours.eval()(x[:1, :, :1], torch.tensor([1])))
    assert torch.equal(ours.running_mean, before)


def test_network_size_is_as_measured(reference: Any, model: Any) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 116_487_260
    layout = {key: list(view.shape) for key, view in model.reference_views(model.state_dict()).items()}
    assert layout == {key: entry["shape"] for key, entry in reference.file["state_dict"].items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_class": 3}, "n_class: expected 2, key frame or not, got 3"),
        ({"variant": "C"}, "variant: expected one of A, B, got 'C'"),
        ({"dropout": 1.5}, "dropout: expected a number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("fcsn", feature_dim=8, **options)
