"""Graphs in processes of their own: the memory they share with the server."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.bundle import read
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.runtime.serve import isolated
from vsum_runtime.runtime.serve.isolated import IsolatedSession


def test_calls_of_any_size_at_once_give_what_one_process_gives(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = 1 << 20
    monkeypatch.setattr(isolated, "_KEPT_BYTES", kept)
    bundle = read(DEFAULT_BUNDLE)
    calls = []
    for n_videos, n_steps in [(1, 20), (2, 150), (1, 1), (1, 900), (1, 20), (3, 40), (1, 700), (1, 901)]:
        rows = rng.random((n_videos, n_steps, bundle.feature_dim), dtype=np.float32)
        calls.append({"features": rows, "lengths": np.full(n_videos, n_steps)})
    calls.append({"features": np.asfortranarray(calls[1]["features"]), "lengths": np.array([150, 90])})
    alone = open_session(bundle.graph, "ort-cpu", n_threads=1)
    session = IsolatedSession(bundle.graph, "ort-cpu", n_processes=2, n_threads=1)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(session.run, calls * 3))
        for call, outputs in zip(calls * 3, found, strict=True):
            for output, expected in zip(outputs, alone.run(call), strict=True):
                np.testing.assert_array_equal(output, expected)
        children = [session._idle.get() for _ in range(2)]
        assert all(os.fstat(child._memory.fd).st_size <= kept for child in children)
        for child in children:
            session._idle.put(child)
    finally:
        session.close()
        alone.close()
