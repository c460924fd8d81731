"""The main path: a video in, a Summary out, in five calls (read_frames, extract, score, find_shots, choose)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime import bundle as bundles
from runtime.backends import open_session
from runtime.errors import BackendError, BundleError, InputError
from runtime.scores import score
from runtime.shots import find_shots, step_frames
from runtime.summary import Summary, budget_in_frames, choose, keep_best_step, parse_budget

_EXAMPLE_LIMIT = 1e-3

DEFAULT_BUNDLE = Path(__file__).parent / "default_model"


class Summarizer:
    """One opened model.

    >>> with Summarizer() as summarizer:
    ...     scores = summarizer.score([np.ones((4, 1280), np.float32), np.ones((9, 1280), np.float32)])
    >>> [len(s) for s in scores]
    [4, 9]

    Parameters
    ----------
    bundle : directory of an exported model; None opens the model that ships with the package
    backend : a name of ``runtime.backends.BACKENDS``, or "auto" for the fastest that can run here
    n_threads : threads of a CPU backend; None takes every processor this process may use

    Raises
    ------
    BundleError    not a bundle, or a part of it is missing or altered
    BackendError   the backend asked for cannot run here
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        backend: str = "auto",
        n_threads: int | None = None,
    ) -> None:
        self.bundle = bundles.read(DEFAULT_BUNDLE if bundle is None else bundle)
        # Engines are built of scorers; the feature network then runs on the best of the others.
        self._network_backend = "auto" if backend == "tensorrt" else backend
        self._n_threads = n_threads
        self._scorer = open_session(self.bundle.graph, backend, half=self.bundle.half, n_threads=n_threads)
        if self._scorer.name != "ort-cpu":
            self._check_example()

    @property
    def backend(self) -> str:
        """The backend that really runs."""
        return self._scorer.name

    @property
    def precision(self) -> str:
        """``"fp32"`` or ``"fp16"``, as it really runs."""
        return self._scorer.precision

    def _check_example(self) -> None:
        """Refuse a backend whose scores of the bundle's own example are not those measured in float32 on the CPU."""
        rows, lengths = bundles.example_features(self.bundle.feature_dim, self.bundle.example_lengths)
        found = self.score([features[:n] for features, n in zip(rows, lengths, strict=True)])
        expected = self.bundle.manifest["example"]["scores"]
        worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        if not worst <= _EXAMPLE_LIMIT:
            backend, precision = self.backend, self.precision
            self.close()
            raise BackendError(
                f"{self.bundle.path}: {backend} in {precision} is {worst:.1e} from the float32 scores of the bundle's "
                f"example, allowed are {_EXAMPLE_LIMIT:.0e}; use backend ort-cpu, or export with --auto-precision"
            )

    def __enter__(self) -> Summarizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._scorer.close()

    def score(self, features: Sequence[ArrayLike] | NDArray[np.floating[Any]]) -> list[NDArray[np.float32]]:
        """Score videos of mixed length.

        Parameters
        ----------
        features : one array [T, D] per video, any T >= 1, finite floats

        Returns
        -------
        list of float32 [T]   in the order of the input

        Raises
        ------
        InputError   an empty list, a wrong shape or dtype, NaN or infinity
        """
        if isinstance(features, np.ndarray) and features.ndim == 2:
            raise InputError(
                f"features: expected a list of [T, D] arrays, got one array {features.shape}; pass [features]"
            )
        if len(features) == 0:
            raise InputError("features: expected at least one video, got an empty list")
        checked = [self._checked(rows, f"features[{i}]") for i, rows in enumerate(features)]
        return score(self._scorer, checked, self.bundle.decoder)

    def summarize_features(
        self,
        features: ArrayLike,
        *,
        picks: ArrayLike | None = None,
        n_frames: int | None = None,
        shots: ArrayLike | None = None,
        fps: float | None = None,
        budget: float | str = 0.15,
    ) -> Summary:
        """Summarize a video whose features are at hand.

        Parameters
        ----------
        features : float [T, D]
        picks : int [T]           source frame of each step, increasing from 0; default: every frame is a step
        n_frames : int            frames of the source video; default: one past the last pick
        shots : int [S, 2]        half-open frame ranges; they are used as given. Default: found from the features
        fps : float               frames per second of the source, where times in seconds are wanted
        budget : share of the video (0.15, "15%") or seconds ("90s")

        Returns
        -------
        Summary   empty only if ``shots`` were given and none of them fits the budget
        """
        rows = self._checked(features, "features")
        steps = _checked_picks(picks, len(rows))
        total = _checked_n_frames(n_frames, steps)
        if fps is not None and not (np.isfinite(fps) and fps > 0):
            raise InputError(f"fps: expected a rate above zero, got {fps}")
        times = None if fps is None else np.arange(total + 1) / fps
        given = None if shots is None else _checked_shots(shots, total)
        return self._summarize(rows, steps, total, given, budget, times, source=None)

    def summarize(
        self,
        video: str | os.PathLike[str],
        *,
        budget: float | str = 0.15,
        progress: Callable[[float], None] | None = None,
    ) -> Summary:
        """Summarize a video file.

        Parameters
        ----------
        video : path of any file the decoder reads
        budget : share of the video (0.15, "15%") or seconds ("90s")
        progress : called with the share of the video that has been read, 0 to 1

        Returns
        -------
        Summary   never empty; ``fallback`` says what was done where no shot fitted the budget

        Raises
        ------
        VideoError    the file is not a video that can be decoded
        BundleError   the bundle has no feature network, so it scores given features only
        """
        from runtime.features import Recipe, extract
        from runtime.video import read_frames

        parse_budget(budget)
        if self.bundle.recipe is None:
            raise BundleError(
                f"{self.bundle.path}: this bundle has no feature network; extract features yourself and call "
                "summarize_features, or export with --features"
            )
        recipe = Recipe.from_dict(self.bundle.recipe)
        network = open_session(self.bundle.path / recipe.network, self._network_backend, n_threads=self._n_threads)
        try:
            with read_frames(video, recipe, progress=progress) as reader:
                features = extract(reader, recipe, lambda images: network.run({"images": images})[0])
        finally:
            network.close()
        return self._summarize(
            features, reader.picks, reader.n_frames, None, budget, reader.frame_times_s, source=Path(video)
        )

    def _summarize(
        self,
        features: NDArray[np.float32],
        picks: NDArray[np.int64],
        n_frames: int,
        shots: NDArray[np.int64] | None,
        budget: float | str,
        times: NDArray[np.float64] | None,
        source: Path | None,
    ) -> Summary:
        scores = score(self._scorer, [features], self.bundle.decoder)[0]
        duration_s = None if times is None else float(times[-1] - times[0])
        budget_frames = budget_in_frames(budget, n_frames, duration_s)
        found = find_shots(features, picks, n_frames) if shots is None else shots
        fallback = ""
        longest = int((found[:, 1] - found[:, 0]).max())
        if shots is None and step_frames(picks, n_frames) <= budget_frames < longest:
            fallback = f"shots longer than the budget were split: the longest had {longest} of {budget_frames} frames"
            found = find_shots(features, picks, n_frames, max_shot_frames=budget_frames)
        values, chosen = choose(scores, picks, found, n_frames, budget_frames, times)
        if shots is None and len(chosen) == 0:
            fallback = f"no shot fitted the budget of {budget_frames} frames: kept that much of the best one"
            found, chosen = keep_best_step(scores, picks, found, n_frames, budget_frames)
            values, _ = choose(scores, picks, found, n_frames, 0, times)
        return Summary(
            scores=scores,
            picks=picks,
            n_frames=n_frames,
            shots=found,
            shot_scores=values,
            chosen=chosen,
            budget_frames=budget_frames,
            frame_times_s=times,
            fallback=fallback,
            model=self.bundle.name,
            source=source,
        )

    def _checked(self, features: ArrayLike, name: str) -> NDArray[np.float32]:
        rows = np.asarray(features)
        dim = self.bundle.feature_dim
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != dim:
            hint = "; transpose it" if rows.ndim == 2 and rows.shape[0] == dim else ""
            raise InputError(f"{name}: expected [T, {dim}] with T >= 1, got {rows.shape}{hint}")
        if rows.dtype.kind != "f":
            raise InputError(f"{name}: expected floats, got {rows.dtype}; cast to float32")
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        if not np.isfinite(rows).all():
            step = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"{name}: expected finite values, got NaN or infinity at step {step}")
        return rows


def _checked_picks(picks: ArrayLike | None, n_steps: int) -> NDArray[np.int64]:
    if picks is None:
        return np.arange(n_steps, dtype=np.int64)
    steps = np.asarray(picks)
    if steps.shape != (n_steps,) or steps.dtype.kind not in "iu":
        raise InputError(f"picks: expected [{n_steps}] integers, got {steps.shape} {steps.dtype}")
    steps = steps.astype(np.int64)
    if steps[0] != 0 or (np.diff(steps) <= 0).any():
        raise InputError(f"picks: expected increasing frame numbers from 0, got {steps[:4].tolist()}...")
    return steps


def _checked_n_frames(n_frames: int | None, picks: NDArray[np.int64]) -> int:
    if n_frames is None:
        return int(picks[-1]) + 1
    least = max(1, int(picks[-1]))  # some files end their picks at n_frames: that step covers no frame
    if n_frames < least:
        raise InputError(f"n_frames: expected at least {least}, the last pick, got {n_frames}")
    return int(n_frames)


def _checked_shots(shots: ArrayLike, n_frames: int) -> NDArray[np.int64]:
    ranges = np.asarray(shots)
    if ranges.ndim != 2 or ranges.shape[1:] != (2,) or len(ranges) == 0 or ranges.dtype.kind not in "iu":
        raise InputError(f"shots: expected [S, 2] integers with S >= 1, got {ranges.shape} {ranges.dtype}")
    ranges = ranges.astype(np.int64)
    inside = ranges[0, 0] >= 0 and ranges[-1, 1] <= n_frames
    if not inside or (ranges[:, 0] >= ranges[:, 1]).any() or (ranges[1:, 0] < ranges[:-1, 1]).any():
        raise InputError(
            f"shots: expected half-open ranges inside [0, {n_frames}), in order and without overlap; "
            "inclusive ends of the standard files need + 1"
        )
    return ranges
