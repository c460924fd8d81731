"""Fixtures shared by all tests.

Some tests compare with outputs of the authors' own code, or read real data sets. Those files are not part of this
repository: they are looked for in the folder that VSUM_REFERENCE names (default: ``shared`` beside the checkout), and
the tests skip with a reason where it is absent.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("VSUM_REFERENCE", ROOT.parent / "shared"))


class Golden:
    """The authors' outputs, and the generator of the inputs and weights that gave them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spec = importlib.util.spec_from_file_location("golden_fill", folder / "fill.py")
        assert spec is not None
        assert spec.loader is not None
        self.fill: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)

    def cases(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden() -> Golden:
    folder = REFERENCE / "golden"
    if not (folder / "fill.py").exists():
        pytest.skip(f"golden files absent: no {folder}; set VSUM_REFERENCE to the folder that holds golden/")
    return Golden(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = REFERENCE / "data"
    if not folder.exists():
        pytest.skip(f"real data absent: no {folder}; set VSUM_REFERENCE to the folder that holds data/")
    return folder
