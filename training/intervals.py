"""How sure a mean over test videos is: bootstrap intervals, and differences of two scorers on the same videos.

Videos are drawn with replacement, as often as there are different ones; a video that several splits test is drawn
whole. Within a draw the means are those of the table: over the videos of a split, then over splits. The intervals say
what other videos of the same kind could have given; other annotators and other training runs are not in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BySplit = Mapping[int, Mapping[str, float]]
"""Split number -> video -> value; NaN is left out."""

DRAWS = 10_000
LEVEL = 0.95


def interval(values: BySplit) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of the mean; NaN where nothing is defined.

    >>> low, high = interval({1: {"video_1": 0.0, "video_2": 1.0}})
    >>> low, high
    (0.0, 1.0)
    """
    keys = tuple(sorted({key for videos in values.values() for key in videos}))
    place = {key: index for index, key in enumerate(keys)}
    times = _drawn(len(keys))
    means = []
    for videos in values.values():
        defined = {key: value for key, value in videos.items() if not np.isnan(value)}
        drawn = times[:, [place[key] for key in defined]]
        with np.errstate(invalid="ignore"):  # none of a split's videos drawn: 0 / 0
            means.append(drawn @ np.array(list(defined.values())) / drawn.sum(axis=1))
    stacked = np.stack(means)
    count = (~np.isnan(stacked)).sum(axis=0)
    means_of_splits = np.nansum(stacked, axis=0)[count > 0] / count[count > 0]
    if len(means_of_splits) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(means_of_splits, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean(values: BySplit) -> float:
    """Over the videos of a split, then over splits; NaN where nothing is defined."""
    defined = [[value for value in videos.values() if not np.isnan(value)] for videos in values.values()]
    means = [sum(videos) / len(videos) for videos in defined if videos]
    return sum(means) / len(means) if means else float("nan")


def difference(values: BySplit, others: BySplit) -> dict[int, dict[str, float]]:
    """Values less others, video by video, where both have the video."""
    return {
        number: {key: value - others[number][key] for key, value in videos.items() if key in others[number]}
        for number, videos in values.items()
        if number in others
    }


@lru_cache(maxsize=4)
def _drawn(n_videos: int) -> NDArray[np.float64]:
    """How often each video is drawn [DRAWS, n_videos]; the same for every scorer, so that rows compare."""
    rng = np.random.default_rng(0)
    return rng.multinomial(n_videos, np.full(n_videos, 1 / n_videos), size=DRAWS).astype(np.float64)
