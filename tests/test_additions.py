"""A model, a kernel and a backend are added in the steps that the docs name, and no others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.backends import BACKENDS, absences
from vsum_runtime.runtime.backends import ort as ort_backend
from vsum_runtime.runtime.errors import BackendError

MODEL = '''
import torch
from torch import nn

from vsum_runtime.training.models.batch import check_batch, valid
from vsum_runtime.training.models.card import Card
from vsum_runtime.training.models.options import chosen, whole


class Toy(nn.Module):
    """One hidden layer for each step on its own."""

    output = "scores"
    card = Card("supervised", "nobody's", 2026, "Apache-2.0")

    def __init__(self, feature_dim, *, width=4):
        super().__init__()
        self.feature_dim, self.width = feature_dim, whole("width", width, least=1)
        self.inner, self.outer = nn.Linear(feature_dim, self.width), nn.Linear(self.width, 1)

    options = property(chosen)

    def forward(self, features, lengths):
        check_batch(features, lengths, self.feature_dim, self.inner.weight.dtype)
        scores = torch.sigmoid(self.outer(torch.relu(self.inner(features)))).squeeze(-1)
        return scores.masked_fill(~valid(lengths, features.shape[1]), 0.0)

    def reference_views(self, tensors):
        return dict(tensors)

    def reference_unused(self):
        return {}
'''
KERNEL = """
import numpy as np

from vsum_runtime.kernels.compiled import compiled


def longest_run(is_kept):
    return int(_longest_run(np.asarray(is_kept, dtype=np.bool_)))


@compiled
def _longest_run(is_kept):
    longest = run = 0
    for kept in is_kept:
        run = run + 1 if kept else 0
        longest = max(longest, run)
    return longest
"""


def test_a_model_is_a_file_a_line_and_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py, torch = pytest.importorskip("h5py"), pytest.importorskip("torch")
    from vsum_runtime.export import cli as export
    from vsum_runtime.training import cli as train
    from vsum_runtime.training.models import MODELS
    from vsum_runtime.training.procedures import RECIPES, Recipe

    (tmp_path / "toy_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "toy", "toy_model:Toy")
    monkeypatch.setitem(RECIPES, "toy", Recipe("regression:Regression", 1, rules=("last",)))
    draws = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for number in range(3):
            group, n_steps = file.create_group(f"video_{number + 1}"), 12 + number
            group["features"], group["gtscore"] = draws.random((n_steps, 8), np.float32), draws.random(n_steps)
            group["picks"], group["n_frames"] = 15 * np.arange(n_steps), 15 * n_steps
    runs = ["--runs", str(tmp_path / "runs")]
    asked = [
        "--model",
        "toy",
        "--option",
        "width=3",
        "--dataset",
        str(tmp_path / "data.h5"),
        "--split",
        "whole",
        "--feature-norm",
        "none",
    ]
    assert train.main([*asked, *runs, "-q"]) == 0
    (checkpoint,) = (tmp_path / "runs").rglob("best.safetensors")
    bundle = tmp_path / "bundle"
    assert export.main(["--checkpoint", str(checkpoint), "--features", "none", "--out", str(bundle), "-q"]) == 0
    features = [draws.random((n_steps, 8), np.float32) for n_steps in (1, 9, 4)]
    with Summarizer(bundle) as summarizer:
        scores = summarizer.score(features)
    from safetensors.torch import load_file
    from toy_model import Toy

    model = Toy(8, width=3)
    weights = {name.removeprefix("networks.model."): value for name, value in load_file(checkpoint).items()}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    for rows, given in zip(features, scores, strict=True):
        expected = model(torch.from_numpy(rows)[None], torch.tensor([len(rows)]))[0]
        np.testing.assert_allclose(given, expected.detach(), atol=1e-5)


def test_a_kernel_is_a_file_and_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    (tmp_path / "toy_kernel.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    import toy_kernel

    def twin(is_kept: NDArray[np.bool_]) -> int:
        return max((len(run) for run in "".join("x" if kept else " " for kept in is_kept).split()), default=0)

    for n_steps in (0, 1, 50):
        is_kept = rng.random(n_steps) < 0.7
        assert toy_kernel.longest_run(is_kept) == twin(is_kept)


class Halves(ort_backend.OrtCpu):
    """A backend whose scores are wrong, so that it is seen to have run, and to be refused."""

    def open(self, graph: Path, **options: Any) -> Any:
        session = super().open(graph, **options)
        run = session.run

        def halved(inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
            return [0.5 * output for output in run(inputs)]

        session.run, session.name, session.is_reference = halved, "toy", False  # type: ignore[method-assign]
        return session


class Same(ort_backend.OrtCpu):
    """A backend of another name."""

    def open(self, graph: Path, **options: Any) -> Any:
        session = super().open(graph, **options)
        session.name, session.is_reference = "toy", False
        return session


def test_a_backend_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    module = ModuleType("toy_backend")
    module.Same, module.Halves = Same, Halves  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_backend", module)
    monkeypatch.setitem(BACKENDS, "toy", "toy_backend:Same")
    assert absences()["toy"] is None
    features = [rng.random((9, 1280), dtype=np.float32)]
    with Summarizer(backend="toy") as toy, Summarizer(backend="ort-cpu") as reference:
        assert toy.backend == "toy"
        np.testing.assert_array_equal(toy.score(features)[0], reference.score(features)[0])
    monkeypatch.setitem(BACKENDS, "toy", "toy_backend:Halves")
    with pytest.raises(BackendError, match="toy"):
        Summarizer(backend="toy")
