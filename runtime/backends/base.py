"""The contract every backend meets: open a graph, say what it takes and gives, run it, close it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """One opened graph, ready to run; ``run`` may be called from several threads at once."""

    name: str
    """The backend that really runs, by its name in the table."""

    precision: str
    """``"fp32"``, ``"fp16"`` for a graph in mixed precision, or ``"int8"`` for a quantized one."""

    batch_tokens: int
    """Padded steps (batch x time) worth putting into one call; 1 means one video per call is best."""

    n_callers: int
    """Calls worth making at the same time."""

    is_reference: bool
    """Whether this is what an export is measured on: its scores need no check, and the graph for long videos is its."""

    uses_host_memory: bool
    """Whether it computes in the memory that an export has measured, not in that of a device."""

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        """Outputs in graph order for named inputs."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A way to run graphs, listed whether or not its library is installed."""

    def why_absent(self) -> str | None:
        """None where it can run here, else the reason and the command that would change it."""
        ...

    wants_half: bool
    """Whether it is faster in half precision: it then gets a bundle's half-precision graph, if there is one."""

    def open(self, graph: Path, *, precision: str, n_threads: int | None, side_by_side: bool = False) -> Session:
        """Open a graph of this precision, or raise BackendError; never runs anywhere else than asked.

        ``side_by_side``: as many calls as ``n_callers`` says will be under way all the time, with inputs of one shape.
        """
        ...
