from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models import MODELS, build, load_reference_state_dict
from vsum_runtime.training.models.batch import take_rows, valid

DIM = 64


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(request.param, feature_dim=DIM).eval()


def test_the_table_imports_no_architecture() -> None:
    code = (
        "import sys; from vsum_runtime.training import models\n"
        "print([m for m in sys.modules if m == 'torch' or m.startswith('vsum_runtime.training.models.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['vsum_runtime.training.models.options']"


@torch.no_grad()
def test_padding_never_changes_a_score(model: torch.nn.Module) -> None:
    if model.output != "scores":
        pytest.skip("gives proposals; its own tests cover them")
    lengths = torch.tensor([1, 2, 9, 23])
    features = torch.rand(4, 23, DIM)
    scores = [
        model(features[video : video + 1, :n_steps], lengths[video : video + 1])
        for video, n_steps in enumerate(lengths)
    ]
    for padding in (float("nan"), 1e3):
        padded = features.masked_fill(~valid(lengths, 23)[..., None], padding)
        together = model(padded, lengths)
        assert together.shape == (4, 23)
        for video, n_steps in enumerate(lengths):
            torch.testing.assert_close(
                together[video, :n_steps], scores[video][0], atol=5e-6, rtol=0
            )  # the golden files' least
            assert not together[video, n_steps:].any()


def test_options_build_the_model_again(model: torch.nn.Module) -> None:
    (name,) = (name for name, place in MODELS.items() if place.endswith(f":{type(model).__name__}"))
    again = build(name, feature_dim=model.feature_dim, **model.options)
    assert again.options == model.options
    again.load_state_dict(model.state_dict())


def test_reference_weights_go_in_as_they_came_out(model: torch.nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: view.clone().numpy() for key, view in model.reference_views(model.state_dict()).items()}
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    load_reference_state_dict(model, weights)
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = build("pgl_sum", feature_dim=16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: np.zeros(view.shape, np.float32) for key, view in model.reference_views(model.state_dict()).items()}
    bias = weights.pop("norm_y.bias")
    with pytest.raises(InputError, match=r"this PGLSum of .*'heads': 8.*: missing norm_y.bias; unknown norm_z.bias"):
        load_reference_state_dict(model, {**weights, "norm_z.bias": bias})
    with pytest.raises(InputError, match=r"norm_y.bias expected \[16\], got \[4\]"):
        load_reference_state_dict(model, {**weights, "norm_y.bias": bias[:4]})
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.zeros(2, 5, 9), [5, 5], r"features: expected \[B, T, 8\] torch.float32, got \[2, 5, 9\]"),
        (torch.zeros(5, 8), [5], r"features: expected \[B, T, 8\] .*, got \[5, 8\]"),
        (torch.zeros(2, 5, 8, dtype=torch.float64), [5, 5], r"got \[2, 5, 8\] torch.float64"),
        (torch.zeros(2, 5, 8), [5, 0], r"lengths: expected 1 to T=5, .* got \[5, 0\]"),
        (torch.zeros(2, 5, 8), [6, 5], r"lengths: expected 1 to T=5, .* got \[6, 5\]"),
        (torch.zeros(2, 5, 8), [5], r"expected \[B, T, D\] and \[B\] .* got \[2, 5, 8\] and \[1\]"),
        (torch.zeros(0, 5, 8), [], "lengths|B, T >= 1"),
        (torch.zeros(1, 0, 8), [0], "B, T >= 1"),
        (torch.zeros(2, 5, 8), [5.0, 5.0], r"lengths: expected \[B\] torch.int64, got \[2\] torch.float32"),
    ],
)
def test_batches_no_model_can_score_are_refused(features: torch.Tensor, lengths: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("pgl_sum", feature_dim=8, heads=2, num_segments=2)(features, torch.tensor(lengths))


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.zeros(2, 5, DIM + 1), [5, 5], rf"expected \[B, T, {DIM}\] torch.float32, got \[2, 5, {DIM + 1}\]"),
        (torch.zeros(2, 5, DIM), [5, 0], r"expected 1 to T=5, the steps in features, got \[5, 0\]"),
        (torch.zeros(2, 5, DIM), [6, 5], r"expected 1 to T=5, the steps in features, got \[6, 5\]"),
    ],
)
def test_every_model_refuses_what_it_cannot_score(
    model: torch.nn.Module, features: torch.Tensor, lengths: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model(features, torch.tensor(lengths))


def test_every_model_refuses_weights_of_another_and_names_both(model: torch.nn.Module) -> None:
    other = build("dr_dsn" if type(model).__name__ == "VASNet" else "vasnet", feature_dim=DIM)
    weights = other.reference_views(other.state_dict())
    with pytest.raises(InputError, match=rf"than this {type(model).__name__} of .*: missing .*; unknown "):
        load_reference_state_dict(model, weights)


def test_remarks_of_a_published_configuration_are_no_options() -> None:
    remarks = {"class": "SK", "n_class": 2, "spectral_norm": "folded (exact in eval mode)", "aliases": "dropped"}
    assert build("vslud", feature_dim=8, **remarks).options["spectral_norm"] is False  # type: ignore[call-overload]


def test_options_are_spelt_as_the_authors_spell_them() -> None:
    model = build(
        "PGL-SUM", feature_dim=16, input_size="16", Pos_Enc="Absolute", num_segments=0, fusion="None", HEADS="2"
    )
    chosen = {"pos_enc": "absolute", "num_segments": None, "fusion": None, "heads": 2}
    assert {option: model.options[option] for option in chosen} == chosen


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pgl_summ", {}, "model: expected one of .*csta.*, got 'pgl_summ'"),
        ("pgl_sum", {"headz": 2}, "pgl_sum: unknown option headz; it has output_size, freq, "),
        ("pgl_sum", {"heads": 2, "Heads": 4}, "pgl_sum: option heads is given twice"),
        ("pgl_sum", {"input_size": 512}, "input_size=512, feature_dim=1024"),
        ("pgl_sum", {"feature_dim": 0}, "feature_dim: expected a whole number"),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **options)


def test_take_rows_takes_rows_of_each_video() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    assert take_rows(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
