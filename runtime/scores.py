"""Features in, one importance score per step out, for any number of videos of any length at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Session
from runtime.errors import BackendError
from runtime.proposals import Decoder, decode


def score(
    session: Session, features: Sequence[NDArray[np.float32]], decoder: Decoder | None = None
) -> list[NDArray[np.float32]]:
    """Score videos of mixed length.

    Parameters
    ----------
    session : an opened scorer graph
    features : list of float32 [T, D], T >= 1, finite (checked by the caller)
    decoder : how the graph's proposals become scores; None where it gives scores

    Returns
    -------
    list of float32 [T], in the order of the input

    Raises
    ------
    BackendError   the backend failed, or gave a score that is not finite
    """
    results: dict[int, NDArray[np.float32]] = {}
    for batch in plan_batches([len(rows) for rows in features], session.batch_tokens):
        lengths = np.array([len(features[i]) for i in batch], dtype=np.int64)
        if len(batch) == 1:
            padded = features[batch[0]][None]
        else:
            padded = np.zeros((len(batch), lengths.max(), features[batch[0]].shape[1]), dtype=np.float32)
            for row, i in enumerate(batch):
                padded[row, : len(features[i])] = features[i]
        outputs = session.run({"features": padded, "lengths": lengths})
        for row, i in enumerate(batch):
            unpadded = [output[row, : len(features[i])] for output in outputs]
            results[i] = unpadded[0] if decoder is None else decode(decoder, *unpadded).scores
            if not np.isfinite(results[i]).all():
                raise BackendError(f"{session.name} gave scores that are not finite for video {i} of the request")
    return [results[i] for i in range(len(features))]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group videos of like length so that no batch holds more than ``batch_tokens`` padded steps.

    A video longer than that goes alone.

    >>> plan_batches([3, 100, 4, 90], batch_tokens=200)
    [[0, 2], [3, 1]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # Ascending order: the newest member is the longest, so it sets the padding. Do not pad to twice the shortest.
        fits = batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens
        if fits and lengths[i] <= 2 * lengths[batches[-1][0]]:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
