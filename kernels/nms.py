"""Overlapping proposals -> kept proposals: exact one-dimensional non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.kernels.compiled import compiled, expect


def keep(boxes: ArrayLike, scores: ArrayLike, *, iou_threshold: float = 0.5) -> NDArray[np.int64]:
    """Keep the most confident of proposals that overlap in time.

    Proposals are taken in falling confidence, the lower index first on ties; a kept one removes every later one whose
    intersection over union with it is at least the threshold.

    Parameters
    ----------
    boxes : int or float [P, 2]
        half-open ranges of steps, start < end
    scores : float [P]
        confidence of each proposal
    iou_threshold : float
        in (0, 1]

    Returns
    -------
    int64 [K]
        kept proposals in falling confidence

    Raises
    ------
    ValueError
        on a wrong shape, a non-finite value, an empty range or a threshold out of range

    Notes
    -----
    O(P log P + P * K). The published code of DSNet leaves the order of ties open.

    >>> keep([[0, 10], [1, 10], [20, 30]], [0.5, 0.9, 0.1])
    array([1, 2])
    """
    box = np.asarray(boxes, dtype=np.float64)
    score = np.asarray(scores, dtype=np.float64)
    if box.ndim != 2 or box.shape[1] != 2 or score.shape != box.shape[:1]:
        raise ValueError(f"boxes, scores: expected [P, 2] and [P], got {box.shape} and {score.shape}")
    for name, array in (("boxes", box), ("scores", score)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if (box[:, 0] >= box[:, 1]).any():
        bad = int(np.flatnonzero(box[:, 0] >= box[:, 1])[0])
        raise ValueError(f"boxes: expected start < end, got {box[bad].tolist()} at proposal {bad}")
    if not 0.0 < iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold: expected 0 < iou_threshold <= 1, got {iou_threshold}")
    order = np.argsort(-score, kind="stable")
    expect(__name__, len(box) * (1e-5 + 3e-10 * len(box)))
    kept: NDArray[np.int64] = order[_keep(box[order], float(iou_threshold))]
    return kept


@compiled
def _keep(boxes: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    kept = np.ones(len(boxes), dtype=np.bool_)
    for first in range(len(boxes)):
        if not kept[first]:
            continue
        start, end = boxes[first]
        for later in range(first + 1, len(boxes)):
            both = min(end, boxes[later, 1]) - max(start, boxes[later, 0])
            if both > 0.0:
                either = (end - start) + (boxes[later, 1] - boxes[later, 0]) - both
                if both >= threshold * either:
                    kept[later] = False
    return kept


@_keep.before_start
def _keep_at_once(boxes: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    kept = np.zeros(len(boxes), dtype=np.bool_)
    left, start, end = np.arange(len(boxes)), boxes[:, 0], boxes[:, 1]
    while len(left):
        kept[left[0]] = True
        both = np.minimum(end[0], end) - np.maximum(start[0], start)
        either = (end[0] - start[0]) + (end - start) - both
        stays = (both <= 0.0) | (both < threshold * either)
        stays[0] = False
        left, start, end = left[stays], start[stays], end[stays]
    return kept
