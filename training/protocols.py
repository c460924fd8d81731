"""How one video's scores are compared with the people who annotated it: the named protocols of the field.

Two names are needed to read a number, and every output carries both. The *protocol* says what is ranked against what:
values under different protocols must not be compared. The *F rule* says how the edges of the F-score are rounded off;
on valid data they differ in single shots.

To add a protocol: give ``PROTOCOLS`` a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels import knapsack, metrics, shot_scores
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video, importance_at_picks


@dataclass(frozen=True)
class Protocol:
    """What is ranked against what."""

    prediction: str
    """``scores`` of the steps, or the binary machine ``summary``."""
    reference: str
    """Field of the video that people filled: ``user_scores`` or ``user_summary``."""
    against: str
    """``each`` annotator, whose correlations are averaged; or the ``mean`` annotator."""
    rate: str
    """Compared at the ``picks``, or at all ``frames``, to which scores are spread unchanged."""
    used_by: str


PROTOCOLS: Mapping[str, Protocol] = {
    "tvsum-annotators-at-picks": Protocol(
        "scores", "user_scores", "each", "picks", "PGL-SUM, CA-SUM and CSTA on TVSum; the canonical one here"
    ),
    "summe-summary-vs-mean": Protocol("summary", "user_summary", "mean", "frames", "CSTA on SumMe"),
    "tvsum-annotators-full-rate": Protocol(
        "scores", "user_scores", "each", "frames", "the 2019 paper on evaluation, SSPVS"
    ),
    "tvsum-mean-at-picks": Protocol("scores", "user_scores", "mean", "picks", "MSVA; much larger values"),
    "summaries-full-rate": Protocol(
        "scores", "user_summary", "each", "frames", "SSPVS where annotators gave binary summaries only"
    ),
}

F_RULES: Mapping[str, str] = {
    "exact": "shots valued by float64 means, exact counts, an empty side gives 0",
    "float-family": "as PGL-SUM, CA-SUM, AC-SUM-GAN, CSTA: as exact, but an empty side gives NaN",
    "integer-family": "as VASNet, SSPVS, MSVA: shots valued in whole thousandths, 1e-8 in the denominators",
}


@dataclass(frozen=True)
class Comparison:
    """One machine summary and its scores against every annotator."""

    f: NDArray[np.float64]
    """[U] F-score, 0 to 1."""
    f_max: float
    """Largest F by the F rule, whose treatment of NaN it shares."""
    tau: NDArray[np.float64]
    """Kendall's tau-b [U], or [1] against the mean annotator; NaN where a side is constant."""
    rho: NDArray[np.float64]
    """Spearman's rho, likewise."""


def named(protocol: str) -> Protocol:
    """The protocol of that name."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]


def compare(
    video: Video,
    scores: NDArray[np.float64],
    summaries: NDArray[np.bool_],
    protocol: Protocol,
    *,
    f_rule: str = "exact",
    users: NDArray[Any] | slice = slice(None),
) -> list[Comparison]:
    """Compare several scorers of one video with its annotators.

    Parameters
    ----------
    scores : float64 [K, T]
        of each step; or [K, n] at the rate of the protocol
    summaries : bool [K, N]
        machine summaries; another length is treated by the F rule
    users                          the annotators to compare with

    Returns
    -------
    one Comparison per scorer
    """
    assert video.user_summary is not None
    labels = importance(video, protocol)[users]
    references = labels.mean(axis=0, keepdims=True) if protocol.against == "mean" else labels
    predictions = summaries if protocol.prediction == "summary" else scores
    if predictions.shape[1] != references.shape[1]:
        predictions = np.repeat(scores, np.diff(video.picks, append=video.n_frames), axis=1)
    taus, rhos = metrics.rank_correlations(predictions, references)
    compared = []
    for summary, tau, rho in zip(summaries, taus, rhos, strict=True):
        f = f_scores(summary, video.user_summary[users], f_rule)
        compared.append(Comparison(f, max(f.tolist()), tau, rho))  # Python's max: NaN counts where it comes first
    return compared


def importance(video: Video, protocol: Protocol) -> NDArray[np.float64]:
    """What every annotator gave [U, n], at the rate of the protocol."""
    if protocol.rate == "picks":
        return importance_at_picks(video)
    labels = getattr(video, protocol.reference)
    assert labels is not None
    return np.asarray(labels, dtype=np.float64)


def summary_from_scores(video: Video, scores: NDArray[np.float64], *, f_rule: str = "exact") -> NDArray[np.bool_]:
    """The machine summary [N] of the scores [T], at 15 % of the frames."""
    assert video.shots is not None
    summary = np.zeros(video.n_frames, dtype=np.bool_)
    for start, end in video.shots[chosen_shots(video, scores, f_rule=f_rule)]:
        summary[start:end] = True
    return summary


def chosen_shots(video: Video, scores: NDArray[np.float64], *, f_rule: str = "exact") -> NDArray[np.int64]:
    """The shots [K] of greatest total value that fit the budget."""
    assert video.shots is not None
    values = shot_scores.pool(scores, video.picks, video.shots, video.n_frames)
    return choose(values, video.shots[:, 1] - video.shots[:, 0], video.capacity, f_rule=f_rule)


def choose(
    values: NDArray[np.float64], lengths: NDArray[np.int64], capacity: int, *, f_rule: str = "exact"
) -> NDArray[np.int64]:
    """The exact knapsack, on the values as the F rule sees them.

    The integer family's solver may also add shots worth less than a thousandth where they happen to fit; those are
    never chosen here.
    """
    if f_rule == "integer-family":
        values = np.trunc(1000 * values)
    return knapsack.pack(values, lengths, capacity)


def f_scores(summary: NDArray[np.bool_], user_summary: NDArray[np.bool_], f_rule: str) -> NDArray[np.float64]:
    """F-score [U] of a machine summary [N] against each annotator's [U, N]."""
    if f_rule == "exact":
        return metrics.f_scores(summary, user_summary)
    surplus = len(summary) - user_summary.shape[1]
    if surplus > 0 and f_rule == "float-family":
        user_summary = np.pad(user_summary, ((0, 0), (0, surplus)))
    summary = np.pad(summary, (0, max(0, -surplus)))[: user_summary.shape[1]]
    slack = 1e-8 if f_rule == "integer-family" else 0.0
    overlap = (user_summary & summary).sum(axis=1)
    with np.errstate(invalid="ignore"):
        precision = overlap / (summary.sum() + slack)
        recall = overlap / (user_summary.sum(axis=1) + slack)
        f = 2 * precision * recall / (precision + recall + slack)
    f[precision + recall == 0] = 0.0
    return np.asarray(f, dtype=np.float64)
