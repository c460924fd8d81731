"""The kernels as long inputs see them, compiled; `not_started` gives them as short inputs of a fresh process do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vsum_runtime.kernels import compiled
from vsum_runtime.kernels.__main__ import MODULES


@pytest.fixture(scope="session", autouse=True)
def started() -> None:
    for module in MODULES:
        compiled.start_compiler(module.__name__)


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiler not started, and without an end to its patience."""
    monkeypatch.setattr(compiled, "_started", set())
    monkeypatch.setattr(compiled, "_expected_s", {})
    monkeypatch.setattr(compiled, "PATIENCE_S", float("inf"))
    yield
    assert not compiled._started
