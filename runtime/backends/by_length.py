"""Two graphs of one model behind one session: the quicker one for short videos, the leaner one for long videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.backends.base import Session


class ByLength:
    """A session that scores batches of more than ``above_steps`` steps with another, opened for the first of them."""

    is_reference = uses_host_memory = True

    def __init__(self, short: Session, above_steps: int, open_long: Callable[[], Session]) -> None:
        self.name, self.precision = short.name, short.precision
        self.batch_tokens, self.n_callers = short.batch_tokens, short.n_callers
        self.above_steps = above_steps
        self._short, self._open_long = short, open_long
        self._long: Session | None = None
        self._opening = Lock()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        if inputs["features"].shape[1] <= self.above_steps:
            return self._short.run(inputs)
        with self._opening:
            if self._long is None:
                self._long = self._open_long()
        return self._long.run(inputs)

    def close(self) -> None:
        self._short.close()
        if self._long is not None:
            self._long.close()
