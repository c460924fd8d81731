"""Half precision: the graph stays valid and callable as before, islands stay exact, and the gate decides."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from vsum_runtime.export import cli
from vsum_runtime.export import find_islands as find_islands_cli
from vsum_runtime.export.half_precision import ISLANDS, find_islands, half_precision, islands_of, islands_on_record
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.precision_gate import SEARCH_LIMIT, Gate, HalfOnCpu, dataset_probes, example_probes, failures
from vsum_runtime.export.torch_session import TorchSession
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.errors import BackendError, ExportError, InputError
from vsum_runtime.training import models
from vsum_runtime.training.checkpoint import save_checkpoint

D = 64


class Fragile(nn.Module):
    """A difference of large numbers, which half precision cannot hold, between two plain products."""

    feature_dim, output, options = D, "scores", {}

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(D, D)
        self.last = nn.Linear(D, 1)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(features.shape[1])[None] < lengths[:, None]
        x = self.plain(features) + 1.0
        x = (x + 3e3) - 3e3
        return torch.where(inside, torch.sigmoid(self.last(x).squeeze(2)), 0.0)


def exported(module: nn.Module, path: Path) -> tuple[onnx.ModelProto, ScorerGraph]:
    graph = ScorerGraph(module, "l2")
    scorer_onnx(graph, D, path)
    return onnx.load(path), graph


def checkpoint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model = models.build("dr_dsn", feature_dim=D)
    names = ("dataset", "split")
    record = {
        "model": "dr_dsn",
        "options": model.options,
        "feature_dim": D,
        "feature_norm": "l2",
        "seed": 1,
        "splits": {"name": "s", "sha256": "0"},
    }
    rest = {"epoch": 0, "selection": {"rule": "last", "value": None}, "train_keys": ["video_1"]}
    save_checkpoint(path, model, record | dict.fromkeys(names) | rest)
    return path


def test_a_model_on_record_stays_within_the_limit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = exported(models.build("dr_dsn", feature_dim=D), tmp_path / "scorer.onnx")
    half = half_precision(model, islands_on_record("dr_dsn") or [])
    onnx.save(half, tmp_path / "half.onnx")
    measured = Gate(tmp_path / "scorer.onnx", example_probes(D)).check(tmp_path / "half.onnx")
    assert measured["videos"] == measured["same_summaries"] == 5
    assert 0 < measured["max_abs_difference"] <= 1e-3

    types = {value.name: value.type.tensor_type.elem_type for value in [*half.graph.input, *half.graph.output]}
    assert types.pop("lengths") == TensorProto.INT64
    assert set(types.values()) == {TensorProto.FLOAT}
    assert sum(weight.data_type == TensorProto.FLOAT16 for weight in half.graph.initializer) >= 1
    assert (tmp_path / "half.onnx").stat().st_size < 0.75 * (tmp_path / "scorer.onnx").stat().st_size


def test_pytorch_as_a_session_scores_as_the_exported_graph_does(tmp_path: Path) -> None:
    _, graph = exported(models.build("ca_sum", feature_dim=D), tmp_path / "scorer.onnx")
    measured = Gate(tmp_path / "scorer.onnx", example_probes(D)).measure(TorchSession(graph))
    assert measured["max_abs_difference"] < 1e-5
    assert measured["same_summaries"] == measured["videos"]


def test_a_graph_of_islands_alone_equals_float32(tmp_path: Path) -> None:
    model, _ = exported(models.build("ca_sum", feature_dim=D), tmp_path / "scorer.onnx")
    gate = Gate(tmp_path / "scorer.onnx", example_probes(D))
    everything = half_precision(model, list(islands_of(model)))
    assert gate.measure(HalfOnCpu(everything))["max_abs_difference"] < 1e-5


def test_raw_features_of_any_scale_are_normalised_before_they_are_rounded(tmp_path: Path) -> None:
    model, _ = exported(models.build("ca_sum", feature_dim=D), tmp_path / "scorer.onnx")
    session = HalfOnCpu(half_precision(model, []))
    rows, lengths = np.random.default_rng(0).random((1, 9, D), dtype=np.float32), np.array([9])
    usual = session.run({"features": rows, "lengths": lengths})[0]
    huge = session.run({"features": rows * 1e6, "lengths": lengths})[0]
    np.testing.assert_allclose(huge, usual, atol=1e-3)


def test_operators_that_lose_everything_in_half_precision_are_not_measured_as_exact(tmp_path: Path) -> None:
    model, _ = exported(Fragile(), tmp_path / "scorer.onnx")
    others = [island for island in islands_of(model) if island != "forward:mixing"]
    measured = Gate(tmp_path / "scorer.onnx", example_probes(D)).measure(HalfOnCpu(half_precision(model, others)))
    assert measured["max_abs_difference"] > 1e-2


def test_search_keeps_the_fragile_part_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = exported(Fragile(), tmp_path / "scorer.onnx")
    gate = Gate(tmp_path / "scorer.onnx", example_probes(D))
    assert not gate.passes(half_precision(model, []))
    islands = find_islands(model, gate.passes)
    assert gate.passes(half_precision(model, islands))
    assert "forward:mixing" in islands  # where the large numbers are added and taken away again
    for island in islands:
        assert not gate.passes(half_precision(model, [other for other in islands if other != island]))
    assert len(islands) < len(islands_of(model))
    with pytest.raises(ExportError, match="out of reach"):
        find_islands(model, lambda _: False)


@pytest.mark.parametrize("needed", [["b"], ["b", "k"], ["a", "l"]])
def test_search_finds_any_needed_islands_in_fewer_graphs_than_one_for_each(
    monkeypatch: pytest.MonkeyPatch, needed: list[str]
) -> None:
    tried: list[list[str]] = []
    monkeypatch.setattr("vsum_runtime.export.half_precision.islands_of", lambda _: dict.fromkeys("abcdefghijkl"))
    monkeypatch.setattr(
        "vsum_runtime.export.half_precision.half_precision", lambda _, islands: tried.append(list(islands))
    )
    assert find_islands(onnx.ModelProto(), lambda _: set(needed) <= set(tried[-1])) == needed
    assert len(tried) < 2 + 12  # none, all, and each of them


def test_every_architecture_is_on_record_with_what_was_measured() -> None:
    records = json.loads(ISLANDS.read_text(encoding="utf-8"))
    assert records["search_limit"] == SEARCH_LIMIT
    assert records["architectures"].keys() == models.MODELS.keys()
    for name, record in records["architectures"].items():
        assert islands_on_record(name) == record["islands"]
        assert failures(record["measured"], SEARCH_LIMIT) == []
        assert record["measured"]["videos"] >= 5
        assert record["weights"].startswith(("trained", find_islands_cli.FRESH))
    assert islands_on_record("unknown") is None


def test_record_is_extended_by_a_search_of_one_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for key, n_steps in (("video_1", 20), ("video_2", 90), ("video_3", 45)):
            file[f"{key}/features"] = np.random.default_rng(n_steps).random((n_steps, D), dtype=np.float32)
    out = tmp_path / "islands.json"
    find_islands_cli.record(out, "other", {"islands": []})
    checkpoint(tmp_path / "runs" / "dr_dsn" / "split1" / "best.safetensors")
    rest = ["--measure-on", str(tmp_path / "features.h5"), "--feature-dim", str(D), "--out", str(out)]
    assert find_islands_cli.main(["--models", "dr_dsn", "--runs", str(tmp_path / "runs"), *rest]) == 0
    assert "2 of 2 summaries the same" in capsys.readouterr().out  # without the one it learned from
    found = json.loads(out.read_text(encoding="utf-8"))["architectures"]
    assert list(found) == ["dr_dsn", "other"]
    assert found["dr_dsn"]["measured"]["max_abs_difference"] <= SEARCH_LIMIT
    assert find_islands_cli.main(["--runs", str(tmp_path), "--measure-on", str(tmp_path / "no.h5")]) == 2


def test_unknown_island_names_those_there_are(tmp_path: Path) -> None:
    model, _ = exported(Fragile(), tmp_path / "scorer.onnx")
    with pytest.raises(InputError, match=r"unknown cnn:norms; this graph has forward:mixing, plain:"):
        half_precision(model, ["cnn:norms"])


def test_bundle_has_both_graphs_and_the_cpu_takes_the_float32_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for key, n_steps in (("video_1", 20), ("video_2", 90), ("video_3", 45)):
            file[f"{key}/features"] = np.random.default_rng(n_steps).random((n_steps, D), dtype=np.float32)
    argv = ["--checkpoint", str(checkpoint(tmp_path / "best.safetensors")), "--out", str(tmp_path / "bundle")]
    assert cli.main([*argv, "--auto-precision", "--measure-on", str(tmp_path / "features.h5")]) == 0
    assert "half precision: scores within" in capsys.readouterr().out
    with Summarizer(tmp_path / "bundle", backend="ort-cpu") as summarizer:
        half = summarizer.bundle.manifest["half"]
        assert summarizer.bundle.half == tmp_path / "bundle" / "scorer.fp16.onnx"
        assert summarizer.precision == "fp32"
    assert half["precision"] == "fp16"
    assert half["parity"]["on"] == "features.h5"
    assert half["parity"]["videos"] == 2  # without the one it learned from
    assert half["parity"]["max_abs_difference"] <= half["parity"]["limit"] == 1e-3


def test_int8_makes_a_bundle_for_cpus_where_scores_bear_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(checkpoint(tmp_path / "best.safetensors")), "--precision", "int8"]
    assert cli.main([*argv, "--out", str(tmp_path / "bundle")]) == 0
    assert "int8: scores within" in capsys.readouterr().out
    with Summarizer(tmp_path / "bundle") as summarizer:
        assert (summarizer.backend, summarizer.precision) == ("ort-cpu", "int8")
        measured = summarizer.bundle.manifest["parity"]["int8"]
        nodes = onnx.load(summarizer.bundle.graph).graph.node
    assert 0 < measured["max_abs_difference"] <= measured["limit"]
    assert measured["same_summaries"] == measured["videos"]
    assert "DynamicQuantizeLSTM" in {node.op_type for node in nodes}
    with pytest.raises(BackendError, match=r"quantized to int8 for CPUs .*'ort-cuda' takes fp32"):
        Summarizer(tmp_path / "bundle", backend="ort-cuda")
    assert cli.main(["--bundle", str(tmp_path / "bundle"), "--engine", "tensorrt"]) == 1
    assert "quantized to int8 for CPUs; export it again with --precision fp16" in capsys.readouterr().err
    monkeypatch.setattr("vsum_runtime.export.convert.LIMIT", 1e-12)
    assert cli.main([*argv, "--out", str(tmp_path / "other")]) == 1
    assert "int8 is not equal enough to float32" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert cli.main([*argv, "--auto-precision"]) == 2


def test_half_precision_that_fails_the_gate_leaves_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vsum_runtime.export.precision_gate.LIMIT", 1e-12)
    argv = ["--checkpoint", str(checkpoint(tmp_path / "best.safetensors")), "--out", str(tmp_path / "bundle")]
    assert cli.main([*argv, "--precision", "fp16"]) == 1
    assert "--auto-precision" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_features_of_another_size_or_none_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["video_1/features"] = np.ones((4, D + 1), dtype=np.float32)
    with pytest.raises(InputError, match=rf"expected features \[T, {D}\], got \(4, {D + 1}\)"):
        dataset_probes(tmp_path / "features.h5", D, ())
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(InputError, match="expected an HDF5 file"):
        dataset_probes(tmp_path / "text.h5", D, ())
