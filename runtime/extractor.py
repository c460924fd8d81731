"""A video -> feature rows [T, D]: frames through the feature network, or from the cache without decoding."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import sha256
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.errors import BackendError, InputError, VideoError
from vsum_runtime.runtime.file_kinds import kind_of
from vsum_runtime.runtime.recipe import Recipe

if TYPE_CHECKING:
    from vsum_runtime.runtime.feature_files import Cache

_log = logging.getLogger(__name__)

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Extracted:
    """What one pass over a video leaves."""

    features: NDArray[np.float32]
    """[T, D]"""
    picks: NDArray[np.int64]
    """[T] source frame of each row; rows of the frames that one long picture counts as are equal."""
    n_frames: int
    frame_times_s: NDArray[np.float64]
    """[N + 1] presentation time of each frame from 0, and the end of the last."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the video."""
    cuts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[C] first frame after each hard cut."""
    transitions: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """[G, 2] frames in which one scene turns into another: dissolves and fades."""


class Extractor:
    """The feature network of one recipe, opened for the first video and kept for the next.

    Parameters
    ----------
    open_network
        opens the network for as many calls side by side as it says
    cache
        where features of videos are kept; None: nowhere
    """

    def __init__(self, recipe: Recipe, open_network: Callable[[], Session], cache: Cache | None = None) -> None:
        self.recipe = recipe
        self._open_network, self._cache = open_network, cache
        self._network: Session | None = None
        self._opening = Lock()

    def extract(self, video: str | os.PathLike[str], *, progress: Callable[[float], None] | None = None) -> Extracted:
        """Features of a video; without decoding where the cache has them.

        Raises
        ------
        VideoError
            the file is not a video that can be decoded
        """
        from vsum_runtime.runtime.media.decode import open_container

        _check_kind(Path(video))
        if self._cache is None:
            return self._decode(video, progress)
        open_container(video).close()  # says what is wrong with a file that cannot be read
        digest = sha256(Path(video))
        kept = self._cache.get(digest, self.recipe)
        if kept is None:
            kept = self._decode(video, progress)
            self._cache.put(digest, self.recipe, kept)
        else:
            for warning in kept.warnings:
                _log.warning("%s: %s", video, warning)
        return kept

    def _decode(self, video: str | os.PathLike[str], progress: Callable[[float], None] | None) -> Extracted:
        """Decode only the frames that are needed; the whole video where that cannot be told."""
        from vsum_runtime.runtime.media.frames import read_frames
        from vsum_runtime.runtime.media.sparse import Irregular

        network = self._opened()
        # Side by side, a picture at a time is as fast as several and takes least memory.
        block_size = 1 if network.n_callers > 1 else 4

        def read(sparse: bool) -> Extracted:
            with read_frames(video, self.recipe, block_size=block_size, progress=progress, sparse=sparse) as frames:
                features = extract(
                    frames, self.recipe, lambda images: network.run({"images": images})[0], n_callers=network.n_callers
                )
            return Extracted(
                features[frames.rows],
                frames.picks,
                frames.n_frames,
                frames.frame_times_s,
                tuple(frames.warnings),
                frames.cuts(),
                frames.transitions(),
            )

        try:
            return read(sparse=True)
        except Irregular as reason:
            _log.info("%s: decoding the whole video: %s", video, reason)
            return read(sparse=False)

    def _opened(self) -> Session:
        with self._opening:
            if self._network is None:
                self._network = self._open_network()
            return self._network

    def close(self) -> None:
        if self._network is not None:
            self._network.close()


def _check_kind(video: Path) -> None:
    """Refuse what the decoder would take for a film of one picture, and what people mistake for input."""
    kind = kind_of(video)
    cure = {
        "a picture": "a film of one picture has nothing to choose from",
        "a drawing": "give the path of a video",
        "an HDF5 file": "features at hand go to Summarizer.summarize_features",
        "an archive of NumPy arrays": "features at hand go to Summarizer.summarize_features",
    }.get(str(kind))
    if cure is not None and video.suffix.lower() not in (".mjpeg", ".mjpg"):  # pictures one after the other
        raise VideoError(f"{video}: expected a video file, found {kind}; {cure}")


def preprocess(frames: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Turn RGB pictures of the recipe's size into network input.

    Parameters
    ----------
    frames : uint8 [b, H, W, 3]
        red, green, blue; H and W are the recipe's

    Returns
    -------
    float32 [b, 3, H, W]
        or [b, H, W, 3] where `recipe.layout` is "NHWC"; planes in `recipe.channel_order`

    Raises
    ------
    InputError
        on another shape or dtype
    """
    expected = (recipe.height, recipe.width, 3)
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
        raise InputError(
            f"frames: expected uint8 [b, {', '.join(map(str, expected))}], got {frames.dtype} {frames.shape}; "
            "read them with read_frames and the same recipe"
        )
    ordered = frames if recipe.channel_order == "rgb" else frames[..., ::-1]
    planes = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2)).astype(np.float32)
    planes -= np.array(recipe.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(recipe.scale, dtype=np.float32)[:, None, None]
    return planes if recipe.layout == "NCHW" else np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def extract(
    blocks: Iterable[NDArray[np.uint8]], recipe: Recipe, run: Network, *, n_callers: int = 1
) -> NDArray[np.float32]:
    """Run the picture network over blocks of frames.

    Parameters
    ----------
    blocks : iterable of uint8 [b, H, W, 3]
        as `runtime.media.frames.read_frames` yields them
    run : callable
        what `preprocess` returns -> rows [b, D]
    n_callers : int
        calls of `run` at a time, each from a thread of its own; the blocks are made here meanwhile, at most twice as
        many ahead

    Returns
    -------
    float32 [T, D]
        one row per frame, all blocks in order

    Raises
    ------
    InputError
        when there are no blocks, or frames of another size than the recipe's
    BackendError
        when the network answers another shape, or rows that are not finite
    """
    rows: list[NDArray[np.float32]] = []
    under_way: deque[Future[NDArray[np.float32]]] = deque()
    with ThreadPoolExecutor(n_callers, "vsum-features") as callers:
        try:
            for frames in blocks:
                under_way.append(callers.submit(_rows, frames, recipe, run))
                if len(under_way) > 2 * n_callers:
                    rows.append(under_way.popleft().result())
            rows += [each.result() for each in under_way]
        finally:
            callers.shutdown(cancel_futures=True)
    if not rows:
        raise InputError("frames: expected at least one block of frames, got none")
    features = np.concatenate(rows)
    if recipe.l2_normalize:
        features /= np.linalg.norm(features, axis=1, keepdims=True) + np.float32(1e-10)
    return features


def _rows(frames: NDArray[np.uint8], recipe: Recipe, run: Network) -> NDArray[np.float32]:
    block = np.asarray(run(preprocess(frames, recipe)), dtype=np.float32)
    if block.shape != (len(frames), recipe.feature_dim):
        raise BackendError(
            f"network {recipe.name}: expected rows [{len(frames)}, {recipe.feature_dim}], got {block.shape}; "
            "the network and the recipe do not belong together, export the bundle again"
        )
    if not np.isfinite(block).all():
        raise BackendError(f"network {recipe.name}: expected finite features, got NaN or infinity; check the network")
    return block
