"""The main path: a video in, a Summary out. Extract features, score, find shots, choose: `Summarizer.summarize`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.calls import Plan
from vsum_runtime.runtime.choice import choose
from vsum_runtime.runtime.errors import BundleError, InputError, VsumError
from vsum_runtime.runtime.scorer import Scorer
from vsum_runtime.runtime.shots import find_shots
from vsum_runtime.runtime.summary import Budget, Summary, parse_budget

if TYPE_CHECKING:
    from vsum_runtime.runtime.extractor import Extracted, Extractor
    from vsum_runtime.runtime.recipe import Recipe

DEFAULT_BUNDLE = Path(__file__).parent / "default_model"


class Summarizer:
    """One opened model.

    Parameters
    ----------
    bundle
        directory of an exported model; None opens the model that ships with the package
    backend
        a name of ``runtime.backends.BACKENDS``, or "auto" for the fastest that can run here
    n_threads
        threads of a CPU backend; None takes every processor this process may use
    memory_limit_bytes
        a video whose scoring would take more is refused with the estimate; None: all memory that this machine, or
        container, has
    cache
        folder that keeps features of videos, so that another model with the same recipe decodes nothing
    opener
        opens the graph that scores, with the arguments of ``runtime.backends.open_session``, which is the default

    Raises
    ------
    BundleError
        not a bundle, or a part of it is missing or altered
    BackendError
        the backend asked for cannot run here

    Examples
    --------
    >>> with Summarizer() as summarizer:
    ...     scores = summarizer.score([np.ones((4, 1280), np.float32), np.ones((9, 1280), np.float32)])
    >>> [len(s) for s in scores]
    [4, 9]
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        backend: str = "auto",
        n_threads: int | None = None,
        memory_limit_bytes: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        opener: Callable[..., Session] = open_session,
    ) -> None:
        self.bundle = bundles.read(DEFAULT_BUNDLE if bundle is None else bundle)
        self._scorer = Scorer(
            self.bundle, backend, n_threads=n_threads, memory_limit_bytes=memory_limit_bytes, opener=opener
        )
        # Engines are built of scorers; the feature network then runs on the best of the others.
        self._network_backend = "auto" if "tensorrt" in backend else backend
        self._n_threads, self._cache = n_threads, cache
        self._opened_extractor: Extractor | None = None
        self._opening = Lock()

    def summarize(
        self,
        video: str | os.PathLike[str],
        *,
        budget: Budget = 0.15,
        keep: Sequence[tuple[float, float]] = (),
        drop: Sequence[tuple[float, float]] = (),
        progress: Callable[[float], None] | None = None,
    ) -> Summary:
        """Summarize a video file.

        Parameters
        ----------
        video
            path of any file the decoder reads
        budget
            share of the video (0.15, "15%") or a time ("90s", "1:30"); see `runtime.summary.parse_budget`
        keep, drop
            stretches of the video, start and end in seconds, that the summary must hold, or must not
        progress
            called with the share of the video that has been read, 0 to 1

        Returns
        -------
        Summary
            never empty; ``fallback`` says what was done where no shot fitted the budget

        Raises
        ------
        VideoError
            the file is not a video that can be decoded
        BundleError
            the bundle has no feature network, so it scores given features only
        InputError
            a stretch beyond the video, empty, or both to be kept and dropped; more to be kept than the budget
        """
        parse_budget(budget)
        extracted = self.extract(video, progress=progress)
        features = self._scorer.checked(extracted.features, str(video))
        return self._summarize(
            features,
            extracted.picks,
            extracted.n_frames,
            None,
            budget,
            extracted.frame_times_s,
            source=Path(video),
            scene_changes=(extracted.cuts, extracted.transitions),
            keep=keep,
            drop=drop,
            warnings=extracted.warnings,
        )

    def summarize_features(
        self,
        features: ArrayLike,
        *,
        picks: ArrayLike | None = None,
        n_frames: int | None = None,
        shots: ArrayLike | None = None,
        fps: float | None = None,
        budget: Budget = 0.15,
    ) -> Summary:
        """Summarize a video whose features are at hand.

        Parameters
        ----------
        features : float [T, D]
        picks : int [T]
            source frame of each step, increasing from 0; default: every frame is a step
        n_frames : int
            frames of the source video; default: one past the last pick
        shots : int [S, 2]
            half-open frame ranges; they are used as given. Default: found from the features
        fps : float
            frames per second of the source, where times in seconds are wanted
        budget
            share of the video (0.15, "15%") or a time ("90s", "1:30"); see `runtime.summary.parse_budget`

        Returns
        -------
        Summary
            empty only if ``shots`` were given and none of them fits the budget
        """
        rows = self._scorer.checked(features, "features")
        steps = _checked_picks(picks, len(rows))
        total = _checked_n_frames(n_frames, steps)
        if fps is not None and not (np.isfinite(fps) and fps > 0 and math.isfinite(total / float(fps))):
            raise InputError(f"fps: expected a rate above zero, got {fps}")
        times = None if fps is None else np.arange(total + 1) / fps
        own_shots = None if shots is None else _checked_shots(shots, total)
        return self._summarize(rows, steps, total, own_shots, budget, times, source=None)

    def _summarize(
        self,
        features: NDArray[np.float32],
        picks: NDArray[np.int64],
        n_frames: int,
        own_shots: NDArray[np.int64] | None,
        budget: Budget,
        times: NDArray[np.float64] | None,
        source: Path | None,
        scene_changes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        keep: Sequence[tuple[float, float]] = (),
        drop: Sequence[tuple[float, float]] = (),
        warnings: tuple[str, ...] = (),
    ) -> Summary:
        def find(max_steps: int | None = None) -> NDArray[np.int64]:
            return find_shots(features, picks, n_frames, max_steps=max_steps)

        scores = self._scorer.score_checked(features)
        if own_shots is None:
            kept, dropped = _stretches(keep, drop, times)
            choice = choose(
                scores,
                picks,
                find(),
                n_frames,
                budget,
                times,
                find_shots=find,
                scene_changes=scene_changes,
                keep=kept,
                drop=dropped,
            )
        else:
            choice = choose(scores, picks, own_shots, n_frames, budget, times, may_be_empty=True)
        return Summary(
            scores=scores,
            picks=picks,
            n_frames=n_frames,
            shots=choice.shots,
            shot_scores=choice.shot_scores,
            chosen=choice.chosen,
            budget_frames=choice.budget_frames,
            frame_times_s=times,
            fallback=choice.fallback,
            model=self.bundle.name,
            source=source,
            warnings=warnings,
        )

    def extract(self, video: str | os.PathLike[str], *, progress: Callable[[float], None] | None = None) -> Extracted:
        """Features of a video by the bundle's network; from the cache, without decoding, where they are there.

        Raises
        ------
        VideoError
            the file is not a video that can be decoded
        BundleError
            the bundle has no feature network
        """
        return self._extractor().extract(video, progress=progress)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the bundle's feature network; BundleError where it has none."""
        from vsum_runtime.runtime.recipe import Recipe

        if self.bundle.recipe is None:
            raise BundleError(
                f"{self.bundle.path}: this bundle has no feature network; extract features yourself and call "
                "summarize_features, or export with --features"
            )
        return Recipe.from_dict(self.bundle.recipe)

    def _extractor(self) -> Extractor:
        """Made for the first video: who scores features alone needs no decoder."""
        with self._opening:
            if self._opened_extractor is None:
                from vsum_runtime.runtime.extractor import Extractor

                cache = None
                if self._cache is not None:
                    from vsum_runtime.runtime.feature_files import Cache

                    cache = Cache(Path(self._cache))
                recipe = self.recipe
                network = self.bundle.path / recipe.network

                def open_network() -> Session:
                    return open_session(network, self._network_backend, n_threads=self._n_threads, side_by_side=True)

                self._opened_extractor = Extractor(recipe, open_network, cache)
            return self._opened_extractor

    def score(
        self,
        features: Sequence[ArrayLike] | NDArray[np.floating[Any]],
        *,
        failed: Callable[[int, VsumError], None] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Score videos of mixed length.

        Parameters
        ----------
        features
            one array [T, D] per video, any T >= 1, finite floats
        failed
            told the place of a video that cannot be scored and why, from any thread; its scores are then an empty array
            and the other videos are scored. None: the first such video raises
        progress
            told the share of the work that is done, 0 to 1

        Returns
        -------
        list of float32 [T]
            in the order of the input

        Raises
        ------
        InputError
            an empty list, a wrong shape or dtype, NaN or infinity, more steps than memory allows
        """
        return self._scorer.score(features, failed=failed, progress=progress)

    def plan(self, lengths: Sequence[int]) -> Plan:
        """How `score` would go about videos of these lengths, in steps; ``str`` of it is one readable line."""
        return self._scorer.plan(lengths)

    def memory_bytes(self, n_steps: int) -> int | None:
        """Memory that scoring a video takes beside its features, by what the export measured; None if unknown here."""
        return self._scorer.memory_bytes(n_steps)

    def example_error(self) -> float:
        """How far, at most, scores of the bundle's own example are from those measured in float32 on the CPU."""
        return self._scorer.example_error()

    @property
    def backend(self) -> str:
        """The backend that really runs."""
        return self._scorer.session.name

    @property
    def batch_tokens(self) -> int:
        """Padded steps worth scoring in one call; 1 where one video per call is best."""
        return self._scorer.session.batch_tokens

    @property
    def precision(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"int8"``, as it really runs."""
        return self._scorer.session.precision

    def __enter__(self) -> Summarizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._scorer.close()
        if self._opened_extractor is not None:
            self._opened_extractor.close()


def _stretches(
    keep: Sequence[tuple[float, float]], drop: Sequence[tuple[float, float]], times: NDArray[np.float64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is to be kept and dropped, from seconds to whole frames; stretches that touch are joined."""
    frames = []
    for name, stretches in (("keep", keep), ("drop", drop)):
        joined: list[list[int]] = []
        for start_s, end_s in sorted((float(start), float(end)) for start, end in stretches):
            assert times is not None
            if not 0 <= start_s < end_s <= times[-1] + 1e-3:
                raise InputError(
                    f"{name}: expected a stretch within the video's {times[-1]:.1f} s, got {start_s:g} to {end_s:g} s"
                )
            first = max(0, int(np.searchsorted(times[:-1], start_s + 1e-6, "right")) - 1)
            end = max(first + 1, int(np.searchsorted(times[:-1], end_s - 1e-6)))
            if joined and first <= joined[-1][1]:
                joined[-1][1] = max(end, joined[-1][1])
            else:
                joined.append([first, end])
        frames.append(np.array(joined, dtype=np.int64).reshape(-1, 2))
    kept, dropped = frames
    for first, end in kept.tolist():
        if ((dropped[:, 0] < end) & (dropped[:, 1] > first)).any():
            raise InputError("keep, drop: expected stretches apart from each other, got some that overlap")
    return kept, dropped


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
    if not (np.isfinite(n_frames) and least <= n_frames < 1 << 53 and n_frames == int(n_frames)):
        raise InputError(f"n_frames: expected at least {least}, the last pick, and a whole number, got {n_frames}")
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
