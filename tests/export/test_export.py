"""From a checkpoint to a bundle: what comes out scores as PyTorch does, and a failed gate leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from vsum_runtime.export import cli, convert
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_axes, check_scorer, largest_difference
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0
from vsum_runtime.training.checkpoint import load_model

D = 64


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    checkpoint(folder / "films" / "pgl_sum" / "split1" / "best.safetensors", heads=2, num_segments=2)
    return folder


@pytest.fixture(scope="module")
def bundle(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    assert cli.main(["--model", "pgl-sum", "--split", "1", "--runs", str(runs), "--out", str(out)]) == 0
    return out


def test_bundle_scores_a_ragged_batch_as_pytorch_scores_each_video_alone(runs: Path, bundle: Path) -> None:
    model, _ = load_model(runs / "films" / "pgl_sum" / "split1" / "best.safetensors")
    graph = ScorerGraph(model, "l2")
    rng = np.random.default_rng(0)
    videos = [rng.random((n, D), dtype=np.float32) * 9 for n in (1, 2, 3, 5, 17, 60, 333, 1500)]
    summarizer = Summarizer(bundle)
    summarizer._scorer.session.batch_tokens = 100_000  # one padded batch, as a GPU backend makes
    for video, scores in zip(videos, summarizer.score(videos), strict=True):
        with torch.no_grad():
            alone = graph(torch.from_numpy(video)[None], torch.tensor([len(video)]))[0][0].numpy()
        np.testing.assert_allclose(scores, alone, atol=1e-5, rtol=0)


def test_manifest_tells_where_the_model_comes_from_and_what_was_measured(bundle: Path) -> None:
    manifest = Summarizer(bundle).bundle.manifest
    assert manifest["training"]["dataset"]["name"] == "made up"
    assert manifest["training"]["selection"] == {"rule": "last", "value": None}
    assert set(manifest["parity"]["max_abs_difference"]) == {"1x1", "1x4", "3x5", "1x500", "4x320", "1x3000"}
    assert max(manifest["parity"]["max_abs_difference"].values()) <= manifest["parity"]["tolerance"] == 1e-5
    assert manifest["graph"]["inputs"] == {"features": ["batch", "time", D], "lengths": ["batch"]}


def test_failed_gate_leaves_no_bundle(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("differ by 1 at batch x time 1x1")

    monkeypatch.setattr(convert, "check_scorer", refuse)
    assert cli.main(["--model", "pgl_sum", "--runs", str(runs), "--out", str(tmp_path / "bundle")]) == 1
    assert "differ by 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Leaky(nn.Module):
    """A model that forgets the padding, and one that forgets the time axis, by switch."""

    def __init__(self, *, leak: bool) -> None:
        super().__init__()
        self.leak = leak

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(features.shape[1])[None] < lengths[:, None]
        weight = torch.ones_like(inside) if self.leak else inside
        mean = (features.sum(2) * weight).sum(1, keepdim=True) / lengths[:, None]
        return torch.where(inside, torch.sigmoid(features[:, :, 0] - mean), 0.0)


def test_gate_passes_a_right_model_and_finds_leaking_padding(tmp_path: Path) -> None:
    right, leaky = ScorerGraph(Leaky(leak=False), "none"), ScorerGraph(Leaky(leak=True), "none")
    scorer_onnx(right, D, tmp_path / "right.onnx")
    assert check_scorer(tmp_path / "right.onnx", right, D)["tolerance"] == 1e-5
    scorer_onnx(leaky, D, tmp_path / "leaky.onnx")
    with pytest.raises(ExportError, match=r"differ by .* at batch x time 3x5"):
        check_scorer(tmp_path / "leaky.onnx", leaky, D)


def test_scores_near_zero_keep_their_order(tmp_path: Path) -> None:
    class Low(nn.Module):
        def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
            inside = torch.arange(features.shape[1])[None] < lengths[:, None]
            return torch.where(inside, torch.sigmoid(features[:, :, 0]), 0.0)

    graph = ScorerGraph(Low(), "none")
    scorer_onnx(graph, D, tmp_path / "low.onnx")
    features = np.zeros((1, 200, D), dtype=np.float32)
    features[0, :, 0] = np.linspace(-80, 80, 200)
    session = open_session(tmp_path / "low.onnx", "ort-cpu")
    (scores,) = session.run({"features": features, "lengths": np.array([200])})
    np.testing.assert_allclose(scores[0], torch.sigmoid(torch.from_numpy(features[0, :, 0])), rtol=1e-5)


class Rounded(nn.Module):
    """A model that single precision makes off by some amount, as the rounding of a deep network does."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(features.shape[1])[None] < lengths[:, None]
        scores = torch.sigmoid(features[:, :, 0]) + (self.off if features.dtype == torch.float32 else 0.0)
        return torch.where(inside, scores, 0.0)


def test_double_precision_judges_where_single_precision_cannot(tmp_path: Path) -> None:
    exact, rounded = (ScorerGraph(Rounded(off), "none") for off in (0.0, 5e-5))
    scorer_onnx(exact, D, tmp_path / "exact.onnx")
    measured = check_scorer(tmp_path / "exact.onnx", rounded, D)
    assert measured["max_abs_difference"]["1x3000"] > 1e-5
    assert measured["max_abs_difference_from_fp64"].keys() == measured["max_abs_difference"].keys()
    assert largest_difference(measured) < 1e-6
    assert "max_abs_difference_from_fp64" not in check_scorer(tmp_path / "exact.onnx", exact, D)
    scorer_onnx(ScorerGraph(Rounded(-5e-5), "none"), D, tmp_path / "off.onnx")
    with pytest.raises(ExportError, match=r"by 5.0\de-05 where PyTorch has double precision"):
        check_scorer(tmp_path / "off.onnx", rounded, D)


def test_gate_finds_a_frozen_axis(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["features"], ["scores"])],
        "frozen",
        [value("features", TensorProto.FLOAT, ["batch", 52])],
        [value("scores", TensorProto.FLOAT, ["batch", 52])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "frozen.onnx")
    with pytest.raises(ExportError, match="a number is a frozen axis"):
        check_axes(tmp_path / "frozen.onnx", {"features": ("batch", "time")}, {"scores": ("batch", "time")})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "pgl_sum", "--split", "2"], "vsum-train --model pgl_sum --split 2"),
        (["--model", "pgl_sum", "--split", "0"], "--split: expected a whole number, 1 or more"),
        (["--model", "csta"], "there are: films/pgl_sum/split1/best.safetensors"),
        (["--checkpoint", "nothing.safetensors"], "found no nothing.safetensors"),
    ],
)
def test_missing_run_is_named_with_what_to_do(
    runs: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*argv, "--runs", str(runs)]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_several_data_sets_need_a_name(
    tmp_path: Path, checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in ("films", "sports"):
        checkpoint(tmp_path / dataset / "pgl_sum" / "split1" / "best.safetensors", heads=2, num_segments=2)
    assert cli.main(["--model", "pgl_sum", "--runs", str(tmp_path)]) == 2
    assert "films, sports" in capsys.readouterr().err


def test_runs_of_seeds_are_found_by_their_seed(
    tmp_path: Path, checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "films/pgl_sum/seed3/split1/best.safetensors", heads=2, num_segments=2)
    assert cli.main(["--model", "pgl_sum", "--runs", str(tmp_path)]) == 2
    assert "name its --seed" in capsys.readouterr().err
    out = tmp_path / "bundle"
    assert cli.main(["--model", "pgl_sum", "--runs", str(tmp_path), "--seed", "3", "--out", str(out)]) == 0
    assert (out / "manifest.json").exists()


def test_feature_network_of_another_size_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    argv = ["--model", "pgl_sum", "--runs", str(runs), "--out", str(out), "--features", "efficientnet_lite0"]
    assert cli.main(argv) == 2
    assert "gives 1280 values, the model takes 64" in capsys.readouterr().err
    assert not out.exists()


def test_weights_without_internet_are_named_by_a_flag(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of 1024 features takes GoogLeNet by itself; every flag that the advice names is one."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    model = checkpoint(tmp_path / "m.safetensors", name="dr_dsn", feature_dim=1024)
    arguments = ["--checkpoint", str(model), "--out", str(tmp_path / "bundle")]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "--weights googlenet-1378be20.pth" in said
    assert "--features none" in said
    (tmp_path / "other.pth").write_bytes(b"of another network")
    assert cli.main([*arguments, "--weights", str(tmp_path / "other.pth")]) == 2
    assert "weights: expected a file whose sha256 starts with 1378be20" in capsys.readouterr().err
    assert cli.main([*arguments, "--weights", str(tmp_path / "other.pth"), "--features", "none"]) == 2
    assert "weights: are those of a feature network, and this export has none" in capsys.readouterr().err


def test_a_model_that_learned_from_features_of_another_recipe_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    same, other = (f"efficientnet_lite0 {digest}" for digest in (EFFICIENTNET_LITE0.digest, "0" * 64))
    for learned in (same, "", "of some other tool"):
        convert._warn_of_another_recipe({"dataset": {"recipe": learned}}, EFFICIENTNET_LITE0)
    convert._warn_of_another_recipe({"dataset": None}, EFFICIENTNET_LITE0)
    assert not caplog.records
    convert._warn_of_another_recipe({"dataset": {"recipe": other}}, EFFICIENTNET_LITE0)
    assert other in caplog.text
    assert same in caplog.text
