"""Features in, shots out: half-open ranges of source frames that tile the video."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels.kts import change_points


def find_shots(
    features: NDArray[np.float32], picks: NDArray[np.int64], n_frames: int, *, max_steps: int | None = None
) -> NDArray[np.int64]:
    """Cut a video where its features change, by kernel temporal segmentation.

    Parameters
    ----------
    features : float32 [T, D]
        one row per sampled step; rows are scaled to unit length here, as the field does
    picks : int64 [T]
        source frame of each step, increasing, the first is 0
    n_frames : int
        frames of the source video
    max_steps : int
        no shot longer than this many steps

    Returns
    -------
    int64 [S, 2]
        first frame and one past the last frame of every shot
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    changes = change_points(unit, max_steps=max_steps)
    starts = np.concatenate([[0], picks[changes]])
    return np.stack([starts, np.append(starts[1:], n_frames)], axis=1).astype(np.int64)
