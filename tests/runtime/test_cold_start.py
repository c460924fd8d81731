"""What a fresh process takes to its help, its first score and its first summary, in processor time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SCORE = """
import sys, numpy as np
from runtime import Summarizer
Summarizer().score([np.ones((320, 1280), np.float32)])
assert "numba" not in sys.modules
"""
_SUMMARIZE = """
import sys, numpy as np
from runtime import Summarizer
rows = np.repeat(np.random.default_rng(0).random((10, 1280), dtype=np.float32), 12, axis=0)
summary = Summarizer().summarize_features(rows, picks=np.arange(120) * 15, n_frames=1800)
assert len(summary.shots) == 10 and len(summary.chosen) > 0, summary.shots
assert "numba" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "at_most_s"),
    [(["-m", "vsum_runtime.runtime.cli.summarize", "--help"], 0.8), (["-c", _SCORE], 2.5), (["-c", _SUMMARIZE], 2.5)],
    ids=["help", "score", "summarize"],
)
def test_a_fresh_process_is_soon_there(arguments: list[str], at_most_s: float) -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < at_most_s
