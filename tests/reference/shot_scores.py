"""Mean frame score per shot, by writing out every frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pool(scores: Any, picks: Any, shots: Any, n_frames: Any) -> NDArray[np.float64]:
    frames = np.zeros(n_frames)
    for score, start, end in zip(scores, picks, [*picks[1:], n_frames], strict=True):
        frames[start:end] = score
    return np.array([frames[start:end].mean() for start, end in shots])
