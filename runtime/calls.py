"""Features in, one importance score per step out, for any number of videos of any length at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.errors import BackendError
from vsum_runtime.runtime.proposals import Decoder, decode


@dataclass(frozen=True)
class Plan:
    """How many videos become calls of a session."""

    calls: list[list[int]]
    """Videos of each call, in the order in which the calls start."""
    n_at_once: int
    """Calls that are made at the same time."""
    n_steps: int
    n_padded_steps: int
    """Steps of all videos, and of all calls with their padding."""

    def __str__(self) -> str:
        n_videos = sum(map(len, self.calls))
        how = "one video a call" if n_videos == len(self.calls) else f"up to {max(map(len, self.calls))} videos a call"
        padding = self.n_padded_steps / self.n_steps - 1
        return (
            f"{n_videos} videos of {self.n_steps} steps: {len(self.calls)} calls, {how}, "
            f"{self.n_at_once} at once, {padding:.0%} padding"
        )


def plan(lengths: Sequence[int], session: Session) -> Plan:
    """Choose between single videos in parallel and padded batches, by what the backend says of itself.

    Longest first: a long video that starts last would leave the other processors idle.
    """
    calls = plan_batches(lengths, session.batch_tokens)[::-1]
    padded = sum(len(call) * max(lengths[i] for i in call) for call in calls)
    return Plan(calls, min(session.n_callers, len(calls)), sum(lengths), padded)


def score(
    session: Session,
    features: Sequence[NDArray[np.float32]],
    decoder: Decoder | None = None,
    *,
    failed: Callable[[int, BackendError], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[NDArray[np.float32]]:
    """Score videos of mixed length.

    Parameters
    ----------
    session
        an opened scorer graph
    features
        list of float32 [T, D], T >= 1, finite (checked by the caller)
    decoder
        how the graph's proposals become scores; None where it gives scores
    failed
        told a video that cannot be scored and why; its result is then empty and the others go on. None: raise
    progress
        told the share of the steps that are scored, 0..1, in the calling thread

    Returns
    -------
    list of float32 [T], in the order of the input

    Raises
    ------
    BackendError
        the backend failed, or gave a score that is not finite
    """
    planned = plan([len(rows) for rows in features], session)
    results: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(features)

    def run(call: list[int]) -> list[int]:
        for i, found in zip(call, _score_call(session, features, call, decoder), strict=True):
            if isinstance(found, BackendError):
                if failed is None:
                    raise found
                failed(i, found)
            else:
                results[i] = found
        return call

    if len(planned.calls) == 1:  # a thread for it would cost a server a tenth of a millisecond
        run(planned.calls[0])
        if progress is not None:
            progress(1.0)
        return results
    done = 0
    with ThreadPoolExecutor(planned.n_at_once, "vsum-score") as pool:
        pending = deque(planned.calls)
        under_way: set[Future[list[int]]] = set()
        try:
            while pending or under_way:
                while pending and len(under_way) < planned.n_at_once:  # no more: an interruption waits for these alone
                    under_way.add(pool.submit(run, pending.popleft()))
                finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += sum(len(features[i]) for i in future.result())
                if progress is not None:
                    progress(done / planned.n_steps)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def _score_call(
    session: Session, features: Sequence[NDArray[np.float32]], call: list[int], decoder: Decoder | None
) -> list[NDArray[np.float32] | BackendError]:
    """Scores of the videos of one call; where a batch fails, each of its videos is tried alone."""
    lengths = np.array([len(features[i]) for i in call], dtype=np.int64)
    if len(call) == 1:
        padded = features[call[0]][None]
    else:
        padded = np.zeros((len(call), lengths.max(), features[call[0]].shape[1]), dtype=np.float32)
        for row, i in enumerate(call):
            padded[row, : len(features[i])] = features[i]
    try:
        outputs = session.run({"features": padded, "lengths": lengths})
    except BackendError as error:
        if len(call) == 1:
            return [error]
        return [found for i in call for found in _score_call(session, features, [i], decoder)]
    results: list[NDArray[np.float32] | BackendError] = []
    for row, i in enumerate(call):
        unpadded = [output[row, : len(features[i])] for output in outputs]
        try:
            found = unpadded[0] if decoder is None else decode(decoder, *unpadded).scores
        except BackendError as error:
            results.append(error)
            continue
        if np.isfinite(found).all():
            results.append(found.copy() if len(call) > 1 else found)  # a view would keep the whole batch in memory
        else:
            results.append(BackendError(f"{session.name} gave scores that are not finite for video {i} of the request"))
    return results


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
