"""Models with LSTMs: PyTorch's own exporter unrolls them over the example, or freezes the time axis."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from vsum_runtime.export.convert import batch_tokens
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_scorer
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.training.models import build
from vsum_runtime.training.models.recurrent import BiLSTM


def test_recurrent_models_pass_the_gate_several_in_one_process(tmp_path: Path) -> None:
    for feature_dim, n_layers in ((24, 1), (16, 2)):
        graph = ScorerGraph(build("ac_sum_gan", feature_dim=feature_dim, hidden_size=12, num_layers=n_layers), "l2")
        path = tmp_path / f"{feature_dim}.onnx"
        scorer_onnx(graph, feature_dim, path)
        check_scorer(path, graph, feature_dim)
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert operators.count("LSTM") == 2 * n_layers
        assert not {"Loop", "Scan", "If"} & set(operators)
        assert any(isinstance(layer, nn.LSTM) for layer in graph.modules())  # the model itself is left as it was


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_the_test_path_of_ac_sum_gan_passes_the_gate(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = ScorerGraph(build("ac_sum_gan", feature_dim=16, hidden_size=12, mode=mode, seed=3), "none")
    scorer_onnx(graph, 16, tmp_path / "scorer.onnx")
    check_scorer(tmp_path / "scorer.onnx", graph, 16)


def test_an_lstm_that_reads_padding_is_refused(tmp_path: Path) -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 1, batch_first=True, bidirectional=True)

        def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
            return self.lstm(features)[0].mean(dim=2)

    with pytest.raises(ExportError, match=r"Careless cannot be exported.*LSTMs of one layer and one direction"):
        scorer_onnx(ScorerGraph(Careless(), "none"), 8, tmp_path / "scorer.onnx")


def test_bidirectional_layers_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = BiLSTM(5, 3, n_layers=2), nn.LSTM(5, 3, num_layers=2, batch_first=True, bidirectional=True)
    views = ours.torch_views({f"lstm.{key}": value for key, value in ours.state_dict().items()}, "lstm")
    theirs.load_state_dict(views)
    x, lengths = torch.randn(3, 9, 5), [9, 4, 1]
    y = ours(x, torch.tensor(lengths))
    for row, n_steps in enumerate(lengths):
        torch.testing.assert_close(y[row, :n_steps], theirs(x[row, :n_steps])[0])


def test_a_bundle_says_that_recurrent_networks_gain_from_batches_on_a_cpu_too(tmp_path: Path) -> None:
    for name, expected in (("dr_dsn", 4096), ("vasnet", 1)):
        scorer_onnx(ScorerGraph(build(name, feature_dim=16), "none"), 16, tmp_path / f"{name}.onnx")
        assert batch_tokens(tmp_path / f"{name}.onnx") == expected
