"""Golden cases of the models, and made-up data sets for the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

Fields = dict[str, Any]

REMARKS = ("class", "note", "spectral_norm", "aliases", "instance_norm_single_position")
"""What golden files write beside the options of a model."""


class ModelGolden:
    """The golden file ``name``; what it leaves out (weights, features) is generated again."""

    def __init__(self, golden: Any, name: str) -> None:
        self.fill = golden.fill
        self.file = golden.cases(name)
        self._filled: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
        self.arrays = golden.arrays(self.file.get("arrays_file", f"{name}.npz").removesuffix(".npz"))

    def weights(self, layout: Mapping[str, Any], overrides: Mapping[str, float]) -> dict[str, np.ndarray]:
        weights = {}
        for key, entry in layout.items():
            place = (key, tuple(entry["shape"]))
            if place not in self._filled:
                self._filled[place] = self.fill.tensor(*place, self.file["salt"], entry.get("dtype", "float32"))
            weights[key] = self._filled[place]
        for pattern, factor in overrides.items():
            for key in weights:
                if re.fullmatch(pattern, key):
                    weights[key] = (weights[key] * np.float32(factor)).astype(np.float32)
        return weights

    def features(self, n_steps: int, dim: int = 1024) -> torch.Tensor:
        return torch.from_numpy(self.fill.features(n_steps, dim, self.file["salt"]))

    def options(self, config: str = "") -> dict[str, Any]:
        """Options of the model: a configuration without the remarks in it."""
        options = self.file["configs"][config] if config else self.file["config"]
        return {name: value for name, value in options.items() if name not in REMARKS}

    def model_weights(self, model: Any) -> dict[str, np.ndarray]:
        """Weights of a model; a file of several configurations may list more than one of them has."""
        layout = self.file["state_dict"]
        if "configs" in self.file:
            layout = {key: layout[key] for key in model.reference_views(model.state_dict()) if key in layout}
        return self.weights(layout, self.file["overrides"])

    def videos(self, config: str = "") -> list[Mapping[str, Any]]:
        """The cases of a configuration, with those that the authors' code can run after a small repair only."""
        cases = [*self.file["cases"], *self.file.get("extension_cases", ())]
        return [case for case in cases if case.get("config", "") == config]

    def expected(self, case: Mapping[str, Any], output: str = "scores") -> torch.Tensor:
        place = case["outputs"][output]["array"] if "outputs" in case else f"{case['name']}/{output}"
        return torch.from_numpy(self.arrays[place])

    def tolerance(self, output: str) -> dict[str, float]:
        stated = self.file["tolerance"]
        if output in stated:
            return stated[output]
        return {"atol": stated[f"{output}_atol"], "rtol": stated.get(f"{output}_rtol", 0.0)}

    def padded(self, cases: list[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The videos of ``cases`` in one batch with noise in the padding, and their lengths."""
        lengths = torch.tensor([case["n_steps"] for case in cases])
        features = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (len(cases), int(lengths.max()), 1024)))
        features = features.float()
        for video, case in enumerate(cases):
            features[video, : case["n_steps"]] = self.features(case["n_steps"])
        return features, lengths

    def batch(self, cases: list[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """As ``padded``, and the expected scores."""
        return *self.padded(cases), [self.expected(case).flatten() for case in cases]


@pytest.fixture(scope="session")
def model_golden(golden: Any) -> Any:
    """``model_golden(name)`` reads one golden file of a model."""
    return lambda name: ModelGolden(golden, name)


@pytest.fixture
def unfilled_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """New models hold NaN and no random weights: quick to build, and what loading forgets to fill shows."""

    def fill_with_nan(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.no_grad():
            return tensor.fill_(float("nan"))

    for name in ("uniform_", "normal_", "xavier_uniform_", "kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(torch.nn.init, name, fill_with_nan)


def example_fields() -> Fields:
    """The smallest valid video: 200 frames, every 15th is a step, four shots, two annotators."""
    rng = np.random.default_rng(7)
    return {
        "features": rng.normal(size=(14, 16)).astype(np.float32),
        "gtscore": rng.random(14).astype(np.float32),
        "picks": np.arange(0, 200, 15),
        "n_frames": 200,
        "n_steps": 14,
        "change_points": np.array([[0, 59], [60, 134], [135, 149], [150, 199]]),
        "n_frame_per_seg": np.array([60, 75, 15, 50]),
        "user_summary": (np.arange(200) // 15 % 2 == np.array([[0], [1]])).astype(np.float32),
        "user_scores": rng.integers(1, 6, size=(2, 200)).astype(np.uint8),
    }


def write_videos(path: Path, videos: dict[str, Fields]) -> Path:
    """Write an HDF5 data set; a field that is None is left out."""
    with h5py.File(path, "w") as file:
        for key, fields in videos.items():
            group = file.create_group(key)
            for name, value in fields.items():
                if value is not None:
                    group[name] = value
    return path


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set of one video, the example with some fields replaced or, where None, left out."""

    def write(**changed: Any) -> Path:
        return write_videos(tmp_path / "one.h5", {"video_1": example_fields() | changed})

    return write


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[[dict[str, Fields]], Path]:
    """Write a data set of several videos, each the example with fields replaced or left out as for `write_video`."""

    def write(videos: dict[str, Fields]) -> Path:
        return write_videos(tmp_path / "several.h5", {key: example_fields() | fields for key, fields in videos.items()})

    return write


@pytest.fixture
def eight_videos(tmp_path: Path) -> tuple[Path, Path]:
    """A data set of eight short videos whose gtscore depends on the features, and its split file (6 + 2)."""
    rng = np.random.default_rng(3)
    direction = rng.normal(size=16)
    videos = {}
    for number in range(1, 9):
        n_frames = 180 + 15 * number
        picks = np.arange(0, n_frames, 15)
        features = rng.normal(size=(len(picks), 16)).astype(np.float32)
        gtscore = 1 / (1 + np.exp(-features @ direction / 2))
        scores = np.clip(np.round(1 + 4 * gtscore + rng.normal(scale=0.7, size=(3, len(picks)))), 1, 5)
        videos[f"video_{number}"] = {
            "features": features,
            "gtscore": gtscore.astype(np.float32),
            "picks": picks,
            "n_frames": n_frames,
            "n_steps": len(picks),
            "user_scores": np.repeat(scores, 15, axis=1)[:, :n_frames].astype(np.uint8),
        }
    splits = [{"train_keys": [f"video_{n}" for n in range(1, 7)], "test_keys": ["video_7", "video_8"]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    return write_videos(tmp_path / "eight.h5", videos), tmp_path / "splits.json"
