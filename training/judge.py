"""The one judge: the scores of a video -> their agreement with the people who annotated it.

Beside models it judges what every model must be compared with: chance, one human, the mean of all other humans. A pair
of curves of which one is constant has no rank correlation; it is left out of the mean and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.baselines import leave_one_out_scores, random_scores
from vsum_runtime.training.datasets import Dataset, Video
from vsum_runtime.training.protocols import F_RULES, PROTOCOLS, Comparison, compare, importance, summary_from_scores


@dataclass(frozen=True)
class Rules:
    """The rules of judging; both names belong to every number."""

    protocol: str
    """A key of ``PROTOCOLS``."""
    f_rule: str = "exact"
    """A key of ``F_RULES``."""

    def __post_init__(self) -> None:
        for name, known in (("protocol", PROTOCOLS), ("f_rule", F_RULES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that a video must have."""
        return tuple(dict.fromkeys(("shots", "user_summary", PROTOCOLS[self.protocol].reference)))


@dataclass(frozen=True)
class Agreement:
    """How well one video's scores, or the mean of several, agree with people."""

    f_mean: float
    """F-score, mean over users, 0 to 1 (the rule of TVSum)."""
    f_max: float
    """F-score, maximum over users (the rule of SumMe)."""
    tau: float
    """Kendall's tau-b; NaN where no pair has one."""
    rho: float
    """Spearman's rho."""
    left_out: int = 0
    """Pairs without a rank correlation."""


def default_rules(dataset: Dataset) -> Rules:
    """Rank against each annotator where the data set has their scores, else against the mean summary."""
    scored = all(video.user_scores is not None for video in dataset.videos.values())
    return Rules("tvsum-annotators-at-picks" if scored else "summe-summary-vs-mean")


def evaluate_scores(
    dataset: Dataset, scores: Mapping[str, ArrayLike], keys: Sequence[str], rules: Rules | None = None
) -> dict[str, Agreement]:
    """Judge the scores [T] of each video of ``keys``; ``rules`` None: those that the data set allows."""
    rules = rules or default_rules(dataset)
    return {
        video.key: judge(video, _checked(video, scores[video.key])[None], rules)[0]
        for video in dataset.select(keys, need=rules.needs)
    }


def judge(video: Video, curves: NDArray[np.float64], rules: Rules) -> list[Agreement]:
    """Judge several scorers [K, T] of one video."""
    summaries = np.stack([summary_from_scores(video, scores, f_rule=rules.f_rule) for scores in curves])
    return [
        _agreement(one) for one in compare(video, curves, summaries, PROTOCOLS[rules.protocol], f_rule=rules.f_rule)
    ]


def judge_random(video: Video, rules: Rules, *, draws: int) -> Agreement:
    """The mean of many random scorers."""
    return mean(judge(video, random_scores(video, draws=draws), rules))


def judge_uniform(video: Video, rules: Rules) -> Agreement:
    """The same score for every step: nothing is ranked, and the knapsack takes the shortest shots, as many as fit."""
    return judge(video, np.ones((1, len(video.picks))), rules)[0]


def judge_human(video: Video, rules: Rules) -> Agreement:
    """Each annotator as the scorer, judged by the others."""
    assert video.user_summary is not None
    protocol = PROTOCOLS[rules.protocol]
    curves = importance(video, protocol)
    results = []
    for user in range(len(curves)):
        only, others = slice(user, user + 1), np.delete(np.arange(len(curves)), user)
        results += compare(video, curves[only], video.user_summary[only], protocol, f_rule=rules.f_rule, users=others)
    return mean([_agreement(one) for one in results])


def judge_ceiling(video: Video, rules: Rules) -> Agreement:
    """The mean of all other annotators as the scorer, judged by the one left out."""
    parts = []
    for user, scores in enumerate(leave_one_out_scores(video)):
        summary = summary_from_scores(video, scores, f_rule=rules.f_rule)
        protocol, users = PROTOCOLS[rules.protocol], np.array([user])
        parts += compare(video, scores[None], summary[None], protocol, f_rule=rules.f_rule, users=users)
    f, tau, rho = (np.concatenate([getattr(part, name) for part in parts]) for name in ("f", "tau", "rho"))
    return _agreement(Comparison(f, max(f.tolist()), tau, rho))


def mean(agreements: Sequence[Agreement]) -> Agreement:
    """Unweighted mean without NaN; NaN where there is no other value."""
    f_mean, f_max, tau, rho = (
        _mean(getattr(one, name) for one in agreements) for name in ("f_mean", "f_max", "tau", "rho")
    )
    return Agreement(f_mean, f_max, tau, rho, left_out=sum(one.left_out for one in agreements))


def _agreement(one: Comparison) -> Agreement:
    left_out = int(np.isnan(one.tau).sum())
    return Agreement(float(one.f.mean()), float(one.f_max), _mean(one.tau), _mean(one.rho), left_out)


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _checked(video: Video, scores: ArrayLike) -> NDArray[np.float64]:
    curve = np.asarray(scores, dtype=np.float64)
    if curve.shape != video.picks.shape or not np.isfinite(curve).all():
        raise InputError(f"{video.key}: expected {len(video.picks)} finite scores, one per pick, got {curve.shape}")
    return curve
