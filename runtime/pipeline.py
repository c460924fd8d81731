"""The main path: a video in, a Summary out, in five calls (read_frames, extract, score, find_shots, choose)."""

from __future__ import annotations

import logging
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
from vsum_runtime.runtime.backends.by_length import ByLength
from vsum_runtime.runtime.calls import Plan, plan, score
from vsum_runtime.runtime.errors import BackendError, BundleError, InputError, VsumError
from vsum_runtime.runtime.machine import memory_bytes
from vsum_runtime.runtime.shots import find_shots, step_frames
from vsum_runtime.runtime.summary import Summary, budget_in_frames, choose, keep_best_step, parse_budget

if TYPE_CHECKING:
    from vsum_runtime.runtime.extractor import Extracted, Recipe
    from vsum_runtime.runtime.feature_files import Cache

_log = logging.getLogger(__name__)

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
    memory_limit_bytes : a video whose scoring would take more is refused with the estimate; None: all memory that this
        machine, or container, has
    cache : folder that keeps features of videos, so that another model with the same recipe decodes nothing
    opener : opens the graph that scores, with the arguments of ``runtime.backends.open_session``, which is the default

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
        memory_limit_bytes: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        opener: Callable[..., Session] = open_session,
    ) -> None:
        self.bundle = bundles.read(DEFAULT_BUNDLE if bundle is None else bundle)
        # Engines are built of scorers; the feature network then runs on the best of the others.
        self._network_backend = "auto" if "tensorrt" in backend else backend
        self._n_threads = n_threads
        self._memory_limit = memory_bytes() if memory_limit_bytes is None else memory_limit_bytes
        self._scorer = opener(
            self.bundle.graph,
            backend,
            precision=self.bundle.precision,
            half=self.bundle.half,
            n_threads=n_threads,
        )
        batch_tokens = int(self.bundle.manifest["graph"].get("batch_tokens", 1))
        self._scorer.batch_tokens = max(self._scorer.batch_tokens, batch_tokens)
        self._long_above: int | None = None
        if self.bundle.long is not None and self._scorer.name == "ort-cpu":
            graph, self._long_above = self.bundle.long
            self._scorer = ByLength(
                self._scorer, self._long_above, lambda: opener(graph, "ort-cpu", n_threads=n_threads)
            )
        self._network: Session | None = None
        self._cache: Cache | None = None
        if cache is not None:
            from vsum_runtime.runtime.feature_files import Cache

            self._cache = Cache(Path(cache))
        self._opening = Lock()
        if self._scorer.name != "ort-cpu":
            self._check_example()

    @property
    def backend(self) -> str:
        """The backend that really runs."""
        return self._scorer.name

    @property
    def batch_tokens(self) -> int:
        """Padded steps worth scoring in one call; 1 where one video per call is best."""
        return self._scorer.batch_tokens

    @property
    def precision(self) -> str:
        """``"fp32"``, ``"fp16"`` or ``"int8"``, as it really runs."""
        return self._scorer.precision

    def example_error(self) -> float:
        """How far, at most, scores of the bundle's own example are from those measured in float32 on the CPU."""
        rows, lengths = bundles.example_features(self.bundle.feature_dim, self.bundle.example_lengths)
        found = self.score([features[:n] for features, n in zip(rows, lengths, strict=True)])
        expected = [np.asarray(row, dtype=np.float64) for row in self.bundle.manifest["example"]["scores"]]
        if [len(row) for row in found] != [len(row) for row in expected]:
            raise BundleError(f"{self.bundle.path}: the example's scores and lengths disagree; export the bundle again")
        return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))

    def _check_example(self) -> None:
        """Refuse a backend that is too far from the example."""
        worst = self.example_error()
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
        if self._network is not None:
            self._network.close()

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
        features : one array [T, D] per video, any T >= 1, finite floats
        failed : told the place of a video that cannot be scored and why, from any thread; its scores are then an empty
            array and the other videos are scored. None: the first such video raises
        progress : told the share of the work that is done, 0 to 1

        Returns
        -------
        list of float32 [T]   in the order of the input

        Raises
        ------
        InputError   an empty list, a wrong shape or dtype, NaN or infinity, more steps than memory allows
        """
        if isinstance(features, np.ndarray) and features.ndim == 2:
            raise InputError(
                f"features: expected a list of [T, D] arrays, got one array {features.shape}; pass [features]"
            )
        if len(features) == 0:
            raise InputError("features: expected at least one video, got an empty list")
        checked: dict[int, NDArray[np.float32]] = {}
        for i, rows in enumerate(features):
            try:
                checked[i] = self._checked(rows, f"features[{i}]")
            except InputError as error:
                if failed is None:
                    raise
                failed(i, error)
        results = [np.empty(0, dtype=np.float32)] * len(features)
        if not checked:
            return results
        places = list(checked)
        report = None if failed is None else lambda k, error: failed(places[k], error)
        found = score(self._scorer, list(checked.values()), self.bundle.decoder, failed=report, progress=progress)
        for i, scores in zip(places, found, strict=True):
            results[i] = scores
        return results

    def plan(self, lengths: Sequence[int]) -> Plan:
        """How `score` would go about videos of these lengths, in steps; ``str`` of it is one readable line."""
        return plan(lengths, self._scorer)

    def memory_bytes(self, n_steps: int) -> int | None:
        """Memory that scoring a video takes beside its features, by what the export measured; None if it did not.

        The measured polynomial of the number of steps holds on a CPU, for one video.
        """
        graph = self.bundle.manifest["graph"]
        if self._long_above is not None and n_steps > self._long_above:
            graph = graph["long"]
        measured = graph.get("memory_bytes")
        return None if measured is None else int(np.polyval(measured[::-1], n_steps))

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
        parse_budget(budget)
        found = self.extract(video, progress=progress)
        rows = self._checked(found.features, str(video))
        return self._summarize(rows, found.picks, found.n_frames, None, budget, found.frame_times_s, source=Path(video))

    @property
    def recipe(self) -> Recipe:
        """The recipe of the bundle's feature network; BundleError where it has none."""
        from vsum_runtime.runtime.extractor import Recipe

        if self.bundle.recipe is None:
            raise BundleError(
                f"{self.bundle.path}: this bundle has no feature network; extract features yourself and call "
                "summarize_features, or export with --features"
            )
        return Recipe.from_dict(self.bundle.recipe)

    def extract(self, video: str | os.PathLike[str], *, progress: Callable[[float], None] | None = None) -> Extracted:
        """Features of a video by the bundle's network; from the cache, without decoding, where they are there.

        Raises
        ------
        VideoError    the file is not a video that can be decoded
        BundleError   the bundle has no feature network
        """
        from vsum_runtime.runtime.extractor import Extracted, extract
        from vsum_runtime.runtime.media.frames import open_container, read_frames
        from vsum_runtime.runtime.media.sparse import Irregular

        recipe = self.recipe
        digest = ""
        if self._cache is not None:
            open_container(video).close()  # says what is wrong with a file that cannot be read
            digest = bundles.sha256(Path(video))
            if (kept := self._cache.get(digest, recipe)) is not None:
                return kept
        network = self._open_network(recipe.network)
        # Side by side, a picture at a time is as fast as several and takes least memory.
        block_size = 1 if network.n_callers > 1 else 4

        def read(sparse: bool) -> Extracted:
            with read_frames(video, recipe, block_size=block_size, progress=progress, sparse=sparse) as reader:
                features = extract(
                    reader, recipe, lambda images: network.run({"images": images})[0], n_callers=network.n_callers
                )
            return Extracted(features, reader.picks, reader.n_frames, reader.frame_times_s)

        try:
            found = read(sparse=True)
        except Irregular as reason:
            _log.info("%s: all of it is decoded: %s", video, reason)
            found = read(sparse=False)
        if self._cache is not None:
            self._cache.put(digest, recipe, found)
        return found

    def _open_network(self, name: str) -> Session:
        """The feature network, opened for the first video and kept for the next."""
        with self._opening:
            if self._network is None:
                self._network = open_session(
                    self.bundle.path / name, self._network_backend, n_threads=self._n_threads, side_by_side=True
                )
            return self._network

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
