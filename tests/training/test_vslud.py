from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.vslud import VSLUD, SummaryDiscriminator

UNUSED = {
    f"{norm}.{part}": torch.zeros(()) if part == "num_batches_tracked" else torch.zeros(2)
    for norm in ("bn_score_fr", "bn_upscore2", "bn_upscore16")
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


@pytest.fixture(scope="module")
def reference(model_golden: Any) -> Any:
    return model_golden("vslud_sk")


@pytest.fixture(scope="module")
def model(reference: Any) -> torch.nn.Module:
    model = build("vslud", feature_dim=1024, n_class=reference.file["config"]["n_class"]).eval()
    load_reference_state_dict(model, reference.weights(reference.file["state_dict"], reference.file["overrides"]))
    return model


def test_discriminator_matches_the_authors_code_in_a_padded_batch_too(model_golden: Any) -> None:
    reference = model_golden("vslud_sd")
    discriminator = SummaryDiscriminator(1024).eval()
    load_reference_state_dict(
        discriminator, reference.weights(reference.file["state_dict"], reference.file["overrides"])
    )
    cases = reference.file["cases"]
    lengths = torch.tensor([case["n_steps"] for case in cases])
    features = torch.randn(len(cases), 1000, 1024)
    for video, case in enumerate(cases):
        features[video, : case["n_steps"]] = reference.features(case["n_steps"])
    with torch.no_grad():
        together = {
            "prob": discriminator(features, lengths)[:, None],
            "pooled_ch16": discriminator.encode(features, lengths)[:, ::16],
        }
        for video, case in enumerate(cases):
            one = features[video : video + 1, : case["n_steps"]], lengths[video : video + 1]
            alone = {"prob": discriminator(*one), "pooled_ch16": discriminator.encode(*one)[0, ::16]}
            for name, tolerance in reference.file["tolerance"].items():
                expected = reference.expected(case, name)
                torch.testing.assert_close(alone[name], expected, **tolerance)
                torch.testing.assert_close(together[name][video], expected, **tolerance)


def test_spectral_norm_is_folded_as_the_authors_framework_does(reference: Any) -> None:
    salt, tensors, expected = reference.file["salt"], {}, {}
    for layer, entry in reference.file["spectral_fold"].items():
        for part, name in entry["names"].items():
            tensors[f"{layer}.{part}"] = reference.fill.tensor(name, tuple(entry["shapes"][part]), salt)
        expected[f"{layer}.weight"] = torch.from_numpy(reference.arrays[entry["array"]])
    folded = VSLUD(1024).reference_rewritten(tensors)
    for name, weight in expected.items():
        torch.testing.assert_close(folded[name].reshape(weight.shape), weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "n_entries"), [(VSLUD, 251), (SummaryDiscriminator, 187)])
def test_a_checkpoint_with_spectral_norm_loads_folded_or_not(kind: Any, n_entries: int) -> None:
    torch.manual_seed(0)
    normalised, folded = kind(8, spectral_norm=True).eval(), kind(8).eval()
    views = normalised.reference_views(normalised.state_dict())
    aliased = UNUSED.copy() if kind is VSLUD else {}
    for key, view in views.items():
        prefix = "FCSN_ENC." if key.startswith("FCSN_ENC.") else ""
        layer, part = key.removeprefix(prefix).split(".")
        aliased[key] = view.clone()
        if f"{prefix}{layer}.weight_orig" in views:
            alias = f"sn_{layer}" if "score" in layer else re.sub("conv|fc", "sn", layer)
            aliased[f"{prefix}{alias}.{part}"] = view.clone()
            aliased[key] = torch.full_like(view, 7.0)  # the alias is read last and wins
    checkpoint = {"S_K_state_dict" if kind is VSLUD else "S_D_state_dict": aliased}
    assert len(aliased) == n_entries
    again = kind(8, spectral_norm=True).eval()
    features, lengths = torch.rand(2, 40, 8), torch.tensor([40, 31])
    with torch.no_grad():
        expected = normalised(features, lengths)
        for model in (again, folded):
            load_reference_state_dict(model, checkpoint)
            torch.testing.assert_close(model(features, lengths), expected, atol=1e-5, rtol=0)


def test_network_sizes_are_as_measured(reference: Any, model: Any, model_golden: Any) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 37_643_804
    assert sum(parameter.numel() for parameter in SummaryDiscriminator(1024).parameters()) == 36_581_761
    layout = {key: list(view.shape) for key, view in model.reference_views(model.state_dict()).items()}
    assert layout == {key: entry["shape"] for key, entry in reference.file["state_dict"].items()}


def test_weights_of_the_discriminator_are_refused_by_the_selector(model_golden: Any) -> None:
    reference = model_golden("vslud_sd")
    weights = {key: np.zeros(entry["shape"], np.float32) for key, entry in reference.file["state_dict"].items()}
    with pytest.raises(InputError, match=r"this VSLUD of .*missing conv1_1.*unknown FCSN_ENC.conv1_1"):
        load_reference_state_dict(build("vslud"), weights)
