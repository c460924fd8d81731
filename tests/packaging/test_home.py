"""Nothing is written below a user's home, and nothing reported, by a library that we import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCORE = """
import numpy as np
from vsum_runtime.runtime import Summarizer
with Summarizer(backend={backend!r}) as summarizer:
    summarizer.score([np.ones((4, 1280), np.float32)])
"""


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
def test_scoring_leaves_an_empty_home_empty(backend: str, tmp_path: Path) -> None:
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    kept = {
        name: value for name, value in os.environ.items() if "TELEMETRY" not in name and not name.startswith("XDG_")
    }
    subprocess.run(
        [sys.executable, "-c", SCORE.format(backend=backend)], env=kept | {"HOME": str(tmp_path)}, check=True
    )
    assert list(tmp_path.rglob("*")) == []


def test_the_users_word_on_telemetry_stands(tmp_path: Path) -> None:
    code = "import os, vsum_runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
