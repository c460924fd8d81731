"""Non-maximum suppression as the definition reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def iou(first: NDArray[Any], second: NDArray[Any]) -> float:
    both = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return both / (first[1] - first[0] + second[1] - second[0] - both)


def keep(boxes: NDArray[Any], scores: Any, iou_threshold: float = 0.5) -> list[int]:
    kept: list[int] = []
    for candidate in np.argsort(-np.asarray(scores), kind="stable"):
        if all(iou(boxes[candidate], boxes[other]) < iou_threshold for other in kept):
            kept.append(int(candidate))
    return kept
