from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, csta, load_reference_state_dict
from vsum_runtime.training.models.padded_cnn import EfficientNetB0, GoogLeNet, MobileNetV2, ResNet18


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("csta")


@pytest.fixture
def model(reference: Any, unfilled_weights: None) -> torch.nn.Module:
    model = build("csta", **reference.file["config"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_scores_without_overrides_match_the_authors_code(reference: Any, model: torch.nn.Module) -> None:
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], {}))
    for case in reference.file["plain_cases"]:
        with torch.no_grad():
            scores = model(reference.features(case["n_steps"])[None], torch.tensor([case["n_steps"]]))
        torch.testing.assert_close(scores[0], reference.expected(case), **reference.file["tolerance"]["plain"])


@pytest.mark.parametrize("key", ["losses", "train_mode"])
def test_loss_and_gradients_match_the_authors_code(reference: Any, model: torch.nn.Module, key: str) -> None:
    (case,) = reference.file[key]
    prefix, tolerance = ("train", "train_mode_scores") if key == "train_mode" else ("loss", "scores")
    model.train(key == "train_mode")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features = torch.randn(1, case["n_steps"] + 9, 1024)  # the end is padding, which batch statistics must not see
    features[0, : case["n_steps"]] = reference.features(case["n_steps"])
    scores = model(features, torch.tensor([case["n_steps"]]))[0, : case["n_steps"]]
    expected = torch.from_numpy(reference.arrays[f"{prefix}/scores"]).flatten()
    torch.testing.assert_close(scores.detach(), expected, **reference.file["tolerance"][tolerance])
    mse = (scores - torch.from_numpy(reference.arrays[f"{prefix}/gtscore"]).flatten()).square().mean()
    mse.backward()
    assert mse.item() == pytest.approx(case["values"]["mse"], rel=2e-3)
    views = model.reference_views({name: p.grad for name, p in model.named_parameters()})  # type: ignore[operator]
    norms = {name: views[name].norm().item() for name in case["grad_norms"]}
    assert norms == pytest.approx(case["grad_norms"], rel=2e-3)
    total = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in views.values()]))
    assert total.item() == pytest.approx(case["total_grad_norm"], rel=2e-3)
    buffers = model.reference_views(model.state_dict())  # type: ignore[operator]
    after = case.get("buffers_after", {})
    assert {name: buffers[name].norm().item() for name in after} == pytest.approx(after, rel=2e-3)
    assert buffers["googlenet.conv1.bn.num_batches_tracked"] == case.get("num_batches_tracked", 0)


@pytest.mark.usefixtures("unfilled_weights")
def test_every_variant_matches_the_authors_code_in_a_padded_batch(model_golden: Any) -> None:
    reference = model_golden("csta_variants")
    worst = {}
    for variant in reference.file["variants"]:
        model = build("csta", **{**reference.file["config_base"], **variant["changes"]}).eval()
        layout = {
            key: value for key, value in reference.file["base_state_dict"].items() if key not in variant["removed"]
        }
        load_reference_state_dict(model, reference.weights({**layout, **variant["added"]}, variant["overrides"]))
        features, lengths, expected = reference.batch(variant["cases"])
        with torch.no_grad():
            scores = model(features, lengths)
        worst[variant["id"]] = max(
            (scores[video, :n_steps] - expected[video]).abs().max().item() for video, n_steps in enumerate(lengths)
        )
    tolerance = reference.file["tolerance"]["scores"]["atol"]
    assert len(worst) == len(reference.file["variants"])
    assert {name: error for name, error in worst.items() if not error <= tolerance} == {}


def test_a_fixed_position_table_is_accepted_and_a_learned_one_refused(reference: Any, model: torch.nn.Module) -> None:
    weights = reference.weights(reference.file["state_dict"], {})
    angle = torch.arange(5000.0)[:, None] * torch.exp(torch.arange(0, 1024, 2) * (-torch.tensor(10000.0).log() / 1024))
    table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
    load_reference_state_dict(model, {**weights, "Positional_encoding_op.pe": table, "googlenet.fc.bias": table[0]})
    with pytest.raises(InputError, match=r"other options than .*Positional_encoding_op.pe is fixed there"):
        load_reference_state_dict(model, {**weights, "Positional_encoding_op.pe": table.roll(1, 0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_value_emb": "k"}, "key_value_emb: expected one of None, kv, got 'k'"),
        ({"skip_connection": "IF", "cls_mix": "SM"}, "skip_connection IF adds N rows to the T rows"),
        ({"skip_connection": "IF", "feature_dim": 8}, "expected feature_dim 1024, the width of GoogleNet, got 8"),
        ({"model_name": "VGG"}, "model_name: expected one of GoogleNet_Attention, "),
        ({"cls_on": "perhaps"}, "cls_on: expected true or false, got 'perhaps'"),
    ],
)
def test_options_the_authors_code_cannot_run_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("csta", **options)


def test_a_batch_in_training_mode_is_refused() -> None:
    model = build("csta", feature_dim=8).train()
    with pytest.raises(InputError, match=r"expected one video, got a batch of 2; .*call the model once a video"):
        model(torch.zeros(2, 20, 8), torch.tensor([20, 17]))


def test_initialisation_is_as_published() -> None:
    model = build("csta", feature_dim=8)
    views = model.reference_views(model.state_dict())  # type: ignore[operator]
    assert not views["CLS"].any()
    assert (views["linear1.3.weight"] == 1).all()
    for key in ("linear1.0", "linear2.0"):
        bound = (2 * 6 / sum(views[f"{key}.weight"].shape)) ** 0.5  # Xavier uniform, gain sqrt 2
        assert 0.9 * bound < views[f"{key}.weight"].abs().max() <= bound
        assert (views[f"{key}.bias"] == 0.1).all()


def test_default_model_has_the_published_number_of_parameters_in_use() -> None:
    assert sum(parameter.numel() for parameter in build("csta").parameters()) == 8_754_851


@pytest.mark.parametrize("network", [GoogLeNet, MobileNetV2, EfficientNetB0, ResNet18])
def test_padding_changes_nothing_a_network_makes_of_an_image(network: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    cnn = network().eval()
    for name, buffer in cnn.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.1, 0.5)
    heights = torch.tensor([15, 16, 31, 33, 40, 47])
    images = torch.randn(6, 3, 47, 32) * (torch.arange(47) < heights[:, None])[:, None, :, None]
    with torch.no_grad():
        maps, map_heights = cnn(images, heights)
        for image, height, together, map_height in zip(images, heights, maps, map_heights, strict=True):
            alone, _ = cnn(image[None, :, :height], None)
            scale = alone.abs().max().item()
            assert alone.shape[2] == map_height
            torch.testing.assert_close(together[:, :map_height], alone[0], atol=1e-5 * scale, rtol=0)


def test_a_cnn_trained_on_pictures_can_be_loaded(tmp_path: Path) -> None:
    trained = GoogLeNet().state_dict()
    torch.save({**trained, "fc.weight": torch.zeros(1000, 1024), "aux1.fc1.bias": torch.zeros(3)}, tmp_path / "net.pth")
    model = build("csta", feature_dim=8)
    csta.load_cnn(model, tmp_path / "net.pth")
    torch.testing.assert_close(model.cnn.state_dict(), trained, atol=0, rtol=0)


@pytest.mark.parametrize("content", [b"", b"<html>", {"conv1.weight": torch.zeros(64, 3, 7, 7)}])
def test_another_file_than_the_cnn_weights_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    for wrong in (path, tmp_path / "absent.pth", tmp_path / "absent.safetensors"):
        with pytest.raises(
            InputError, match=r"expected torchvision's state dict of GoogLeNet \(weights IMAGENET1K_V1\)"
        ):
            csta.load_cnn(build("csta", feature_dim=8), wrong)
