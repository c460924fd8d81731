from __future__ import annotations

from typing import Any

import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict


def test_layers_are_those_of_one_stacked_lstm() -> None:
    model = build("dr_dsn", feature_dim=6, hid_dim=4, num_layers=2)
    lstm = torch.nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True)
    weights = {f"rnn.{name}": tensor for name, tensor in lstm.state_dict().items()}
    load_reference_state_dict(model, weights | {"fc.weight": torch.ones(1, 8), "fc.bias": torch.zeros(1)})
    features = torch.rand(1, 9, 6)
    expected = torch.sigmoid(lstm(features)[0].sum(dim=-1))
    torch.testing.assert_close(model(features, torch.tensor([9])), expected)


def test_default_model_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in build("dr_dsn").parameters()) == 2_626_049


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gru"}, "cell: expected one of lstm, got 'gru'"),
        ({"bidirectional": False}, "bidirectional: expected True"),
        ({"hid_dim": 0}, "hid_dim: expected a whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("dr_dsn", feature_dim=8, **options)
