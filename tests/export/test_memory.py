"""The stated memory of a graph covers what it takes at lengths that were not measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export import memory
from runtime.bundle import read
from runtime.pipeline import DEFAULT_BUNDLE

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory to be read here")


def test_the_default_model_stays_within_its_stated_memory() -> None:
    bundle = read(DEFAULT_BUNDLE)
    stated = bundle.manifest["graph"]["memory_bytes"]
    lengths = [1500, 4000]
    child = subprocess.run(
        [sys.executable, "-c", memory._CHILD, str(bundle.graph), str(bundle.feature_dim), json.dumps(lengths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for n_steps, taken in zip(lengths, json.loads(child.stdout), strict=True):
        assert 0.3 * np.polyval(stated[::-1], n_steps) < taken <= np.polyval(stated[::-1], n_steps)


def test_the_envelope_lies_on_or_above_what_was_measured() -> None:
    for taken in ([10.0, 10.0, 10.0], [0.0, 5.0, 1.0], [1e6, 3e6, 9e6], [0.0, 0.0, 0.0]):
        coefficients = memory.envelope(memory.LENGTHS, taken)
        assert min(coefficients) >= 0
        assert (np.polyval(coefficients[::-1], memory.LENGTHS) >= np.array(taken) * 0.999).all()
