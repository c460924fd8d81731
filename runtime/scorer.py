"""A bundle's graph, opened and proven -> importance scores of videos of any lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.backends.by_length import ByLength
from vsum_runtime.runtime.bundle import Bundle, example_features
from vsum_runtime.runtime.calls import Plan, plan, score
from vsum_runtime.runtime.errors import BackendError, BundleError, InputError, VsumError
from vsum_runtime.runtime.machine import memory_bytes

_EXAMPLE_LIMIT = 1e-3


class Scorer:
    """One opened model.

    Parameters
    ----------
    backend
        a name of ``runtime.backends.BACKENDS``, or "auto" for the fastest that can run here
    n_threads
        threads of a CPU backend; None takes every processor this process may use
    memory_limit_bytes
        a video whose scoring would take more is refused; None: all memory of this machine or container
    opener
        opens the graph, with the arguments of ``runtime.backends.open_session``

    Raises
    ------
    BundleError
        the example in the manifest is damaged
    BackendError
        the backend cannot run here, or its scores of the bundle's example are wrong
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        *,
        n_threads: int | None = None,
        memory_limit_bytes: int | None = None,
        opener: Callable[..., Session] = open_session,
    ) -> None:
        self.bundle = bundle
        self._memory_limit = memory_bytes() if memory_limit_bytes is None else memory_limit_bytes
        session = opener(bundle.graph, backend, precision=bundle.precision, half=bundle.half, n_threads=n_threads)
        session.batch_tokens = max(session.batch_tokens, bundle.batch_tokens)
        if bundle.long is not None and session.is_reference:
            graph, above_steps = bundle.long
            open_long = lambda: opener(graph, session.name, n_threads=n_threads)  # noqa: E731
            self.session: Session = ByLength(session, above_steps, open_long)
        else:
            self.session = session
        if not session.is_reference:
            self._check_example()

    def score(
        self,
        features: Sequence[ArrayLike] | NDArray[np.floating[Any]],
        *,
        failed: Callable[[int, VsumError], None] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[NDArray[np.float32]]:
        """See `runtime.Summarizer.score`."""
        if isinstance(features, np.ndarray) and features.ndim == 2:
            raise InputError(
                f"features: expected a list of [T, D] arrays, got one array {features.shape}; pass [features]"
            )
        if len(features) == 0:
            raise InputError("features: expected at least one video, got an empty list")
        checked: dict[int, NDArray[np.float32]] = {}
        for i, rows in enumerate(features):
            try:
                checked[i] = self.checked(rows, f"features[{i}]")
            except InputError as error:
                if failed is None:
                    raise
                failed(i, error)
        results = [np.empty(0, dtype=np.float32)] * len(features)
        if not checked:
            return results
        places = list(checked)
        report = None if failed is None else lambda k, error: failed(places[k], error)
        scores = score(self.session, list(checked.values()), self.bundle.decoder, failed=report, progress=progress)
        for place, curve in zip(places, scores, strict=True):
            results[place] = curve
        return results

    def score_checked(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [T] of one video, of features that `checked` has returned."""
        return score(self.session, [features], self.bundle.decoder)[0]

    def checked(self, features: ArrayLike, name: str) -> NDArray[np.float32]:
        """Features as float32 [T, D]; ``name`` stands for them in messages.

        Raises
        ------
        InputError
            a wrong shape or dtype, NaN or infinity, more steps than the memory limit allows
        """
        rows = np.asarray(features)
        dim = self.bundle.feature_dim
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != dim:
            hint = "; transpose it" if rows.ndim == 2 and rows.shape[0] == dim else ""
            raise InputError(f"{name}: expected [T, {dim}] with T >= 1, got {rows.shape}{hint}")
        if rows.dtype.kind != "f":
            raise InputError(f"{name}: expected floats, got {rows.dtype}; cast to float32")
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        needed = self.memory_bytes(len(rows))
        if needed is not None and self._memory_limit is not None and needed > self._memory_limit:
            raise InputError(
                f"{name}: scoring {len(rows)} steps with {self.bundle.name} takes about {needed / 1e9:.1f} GB, more "
                f"than the limit of {self._memory_limit / 1e9:.1f} GB; sample fewer steps, raise the limit, or take a "
                "model whose memory does not grow with the square of the length"
            )
        finite = np.isfinite(rows)
        if not finite.all():
            step = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise InputError(f"{name}: expected finite values, got NaN or infinity at step {step}")
        return rows

    def plan(self, lengths: Sequence[int]) -> Plan:
        """How `score` would go about videos of these lengths, in steps; ``str`` of it is one readable line."""
        return plan(lengths, self.session)

    def memory_bytes(self, n_steps: int) -> int | None:
        """Memory that scoring a video takes beside its features, by what the export measured on a CPU.

        None where the export measured nothing, or the backend computes in another memory.
        """
        if not self.session.uses_host_memory:
            return None
        uses_long = isinstance(self.session, ByLength) and n_steps > self.session.above_steps
        measured = self.bundle.long_memory_polynomial if uses_long else self.bundle.memory_polynomial
        return None if measured is None else int(np.polyval(measured[::-1], n_steps))

    def example_error(self) -> float:
        """How far, at most, scores of the bundle's own example are from those measured in float32 on the CPU."""
        rows, lengths = example_features(self.bundle.feature_dim, self.bundle.example_lengths)
        scores = self.score([features[:n] for features, n in zip(rows, lengths, strict=True)])
        expected = self.bundle.example_scores
        if [len(curve) for curve in scores] != [len(curve) for curve in expected]:
            raise BundleError(f"{self.bundle.path}: the example's scores and lengths disagree; export the bundle again")
        return max(float(np.abs(a - b).max()) for a, b in zip(scores, expected, strict=True))

    def _check_example(self) -> None:
        """Refuse a backend that is too far from the example."""
        worst = self.example_error()
        if not worst <= _EXAMPLE_LIMIT:
            self.close()
            raise BackendError(
                f"{self.bundle.path}: {self.session.name} in {self.session.precision} is {worst:.1e} from the float32 "
                f"scores of the bundle's example, allowed are {_EXAMPLE_LIMIT:.0e}; use backend ort-cpu, or export "
                "with --auto-precision"
            )

    def close(self) -> None:
        self.session.close()
