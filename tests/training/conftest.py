"""Weights, inputs and expected scores of the golden cases of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch


class ModelGolden:
    """The golden file ``name``; what it leaves out (weights, features) is generated again."""

    def __init__(self, golden: Any, name: str) -> None:
        self.fill = golden.fill
        self.file = golden.cases(name)
        self.arrays = golden.arrays(self.file.get("arrays_file", f"{name}.npz").removesuffix(".npz"))

    def weights(self, layout: Mapping[str, Any], overrides: Mapping[str, float]) -> dict[str, np.ndarray]:
        weights = self.fill.state_dict(layout, self.file["salt"])
        for pattern, factor in overrides.items():
            for key in weights:
                if re.fullmatch(pattern, key):
                    weights[key] = (weights[key] * np.float32(factor)).astype(np.float32)
        return weights

    def features(self, n_steps: int, dim: int = 1024) -> torch.Tensor:
        return torch.from_numpy(self.fill.features(n_steps, dim, self.file["salt"]))

    def expected(self, case: Mapping[str, Any], output: str = "scores") -> torch.Tensor:
        return torch.from_numpy(self.arrays[case["outputs"][output]["array"]])

    def batch(self, cases: list[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """The videos of ``cases`` in one batch, noise in the padding; lengths; expected scores."""
        lengths = torch.tensor([case["n_steps"] for case in cases])
        features = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (len(cases), int(lengths.max()), 1024)))
        features = features.float()
        for video, case in enumerate(cases):
            features[video, : case["n_steps"]] = self.features(case["n_steps"])
        return features, lengths, [self.expected(case).flatten() for case in cases]


@pytest.fixture(scope="session")
def model_golden(golden: Any) -> Any:
    """``model_golden(name)`` reads one golden file of a model."""
    return lambda name: ModelGolden(golden, name)
