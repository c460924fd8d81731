"""A row of the results table: agreement per seed, split and video; and the rows that every model is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vsum_runtime.training.baselines import LinearBaseline
from vsum_runtime.training.datasets import Dataset, Split, Video
from vsum_runtime.training.judge import (
    Agreement,
    Rules,
    evaluate_scores,
    judge_ceiling,
    judge_human,
    judge_random,
    judge_uniform,
    mean,
)
from vsum_runtime.training.protocols import PROTOCOLS

LINEAR = "linear, smoothed"
"""Name of the row that every model is compared with."""

BySplit = Mapping[int, Mapping[str, Agreement]]
"""Split number -> video -> agreement."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    by_seed: Mapping[int, BySplit]
    """Seed of the training -> agreements. Scorers that draw nothing have seed 0."""
    seen_in_training: int | None = 0
    """Test videos that the model had learned from or was chosen by; None where that is not recorded."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How the row was made, in values for JSON; empty for the rows that everything is compared with."""

    @property
    def mean(self) -> Agreement:
        """Over the videos of a split, then over splits, then over seeds."""
        return mean([mean_of_splits(by_split) for by_split in self.by_seed.values()])

    def values(self, measure: str) -> dict[int, dict[str, float]]:
        """One measure of every video, averaged over seeds."""
        first = next(iter(self.by_seed.values()))
        return {
            number: {
                key: getattr(mean([by_split[number][key] for by_split in self.by_seed.values()]), measure)
                for key in videos
            }
            for number, videos in first.items()
        }


def mean_of_splits(by_split: BySplit) -> Agreement:
    """Over the videos of a split, then over splits."""
    return mean([mean(list(videos.values())) for videos in by_split.values()])


def reference_rows(dataset: Dataset, splits: Sequence[Split], rules: Rules, *, draws: int = 100) -> list[Row]:
    """The rows random, uniform, one human, leave-one-out ceiling and linear baseline, as far as the labels allow."""
    keys = dict.fromkeys(key for split in splits for key in split.test_keys)
    tested = dataset.select(list(keys), need=rules.needs)
    judges: dict[str, Callable[[Video], Agreement]] = {
        f"random ({draws} draws)": lambda video: judge_random(video, rules, draws=draws),
        "uniform (all steps alike)": lambda video: judge_uniform(video, rules),
    }
    protocol = PROTOCOLS[rules.protocol]
    if all(len(getattr(video, protocol.reference)) > 1 for video in tested):  # people are judged by one another
        judges["one human"] = lambda video: judge_human(video, rules)
        if protocol.against == "each" and all(video.user_scores is not None for video in tested):
            judges["leave-one-out ceiling"] = lambda video: judge_ceiling(video, rules)
    rows = []
    for name, judged_by in judges.items():
        by_key = {video.key: judged_by(video) for video in tested}
        rows.append(Row(name, {0: {split.number: {key: by_key[key] for key in split.test_keys} for split in splits}}))
    if all(video.features is not None and video.gtscore is not None for video in dataset.videos.values()):
        by_split = {}
        for split in splits:
            line = LinearBaseline.fit(dataset.select(split.train_keys))
            scores = {video.key: line.score(video) for video in dataset.select(split.test_keys)}
            by_split[split.number] = evaluate_scores(dataset, scores, split.test_keys, rules)
        rows.append(Row(LINEAR, {0: by_split}))
    return rows
