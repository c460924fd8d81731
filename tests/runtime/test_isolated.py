"""Graphs in processes of their own: the memory they share with the server; what dies, hangs or cannot start."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.bundle import read
from vsum_runtime.runtime.errors import BackendError, BusyError
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
        assert len(session._idle) == 2
        assert all(os.fstat(child._memory.file.fileno()).st_size <= kept for child in session._idle)
    finally:
        session.close()
        alone.close()


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, Any], list[Any]]:
    """One call of the default model, and its outputs."""
    bundle = read(DEFAULT_BUNDLE)
    call = {"features": np.ones((1, 9, bundle.feature_dim), np.float32), "lengths": np.array([9])}
    alone = open_session(bundle.graph, "ort-cpu", n_threads=1)
    try:
        return call, list(alone.run(call))
    finally:
        alone.close()


@contextmanager
def opened(n_processes: int = 1, **options: Any) -> Iterator[IsolatedSession]:
    session = IsolatedSession(read(DEFAULT_BUNDLE).graph, "ort-cpu", n_processes=n_processes, n_threads=1, **options)
    try:
        until(lambda: len(session._idle) == n_processes)
        yield session
    finally:
        session.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come about")


def test_idle_processes_that_are_killed_cost_no_call(reference: tuple[dict[str, Any], list[Any]]) -> None:
    call, expected = reference
    with opened(n_processes=2) as session:
        for _ in range(2):
            for child in list(session._idle):
                child._process.kill()
            for output, right in zip(session.run(call), expected, strict=True):
                np.testing.assert_array_equal(output, right)


def test_a_process_that_died_before_its_call_began_costs_no_call(reference: tuple[dict[str, Any], list[Any]]) -> None:
    """It is stopped, so that it takes the call and does not begin it, and killed then."""
    call, expected = reference
    with opened() as session, ThreadPoolExecutor(1) as pool:
        child = session._idle[0]
        child._process.send_signal(signal.SIGSTOP)
        answer = pool.submit(session.run, call)
        until(lambda: child in session._busy)
        child._process.kill()
        np.testing.assert_array_equal(answer.result(60)[0], expected[0])


def test_a_process_that_hangs_is_replaced(
    reference: tuple[dict[str, Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, expected = reference
    monkeypatch.setattr(isolated, "_LOOK_S", 0.05)
    with opened(call_timeout_s=1.0) as session:
        hung = session._idle[0]
        hung._process.send_signal(signal.SIGSTOP)
        np.testing.assert_array_equal(session.run(call)[0], expected[0])
        assert hung._process.returncode == -signal.SIGKILL
        assert session._busy == {}


def test_processes_that_hang_do_not_keep_a_session_open(reference: tuple[dict[str, Any], list[Any]]) -> None:
    call, _ = reference
    with ThreadPoolExecutor(1) as pool:
        with opened(n_processes=2) as session:
            children = list(session._idle)
            for child in children:
                child._process.send_signal(signal.SIGSTOP)
            answer = pool.submit(session.run, call)
            until(lambda: bool(session._busy))
            began = time.monotonic()
        assert time.monotonic() - began < 4
        with pytest.raises(BusyError):
            answer.result(20)
    assert [child._process.returncode for child in children] == [-signal.SIGKILL] * 2


def test_a_process_that_cannot_be_replaced_is_tried_again_and_no_other_file_is_written(
    reference: tuple[dict[str, Any], list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call, expected = reference
    start = subprocess.Popen
    with opened() as session:

        def refuse(*_: Any, **__: Any) -> Any:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        numbers = {session._idle[0]._memory.file.fileno(), session._idle[0].wire.fileno()}
        session._idle[0]._process.kill()
        with pytest.raises(BusyError, match="no process could be started"):
            session.run(call)
        files = [(tmp_path / str(n)).open("w+b") for n in range(8)]  # these get the numbers that were closed
        assert numbers <= {file.fileno() for file in files}
        for _ in range(3):
            with pytest.raises(BusyError, match="no process"):
                session.run(call)
        monkeypatch.setattr(subprocess, "Popen", start)
        until(lambda: bool(session._idle))
        np.testing.assert_array_equal(session.run(call)[0], expected[0])
        assert [os.fstat(file.fileno()).st_size for file in files] == [0] * 8
        for file in files:
            file.close()


def test_a_graph_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "scorer.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"scorer\.onnx"):
        IsolatedSession(tmp_path / "scorer.onnx", "ort-cpu", n_processes=2)
