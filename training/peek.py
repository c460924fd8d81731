"""Agreement with the test videos after each epoch, logged apart from everything that chooses an epoch.

Most published numbers are of the epoch that is best on the test videos. A file beside a run's log holds the agreement
with their annotators after every epoch, so that a table can show such a number beside the honest one. Selection
(``training/selection.py``) sees the log alone; no rule, no resumed run and no checkpoint reads this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vsum_runtime.training.datasets import Dataset, Split
from vsum_runtime.training.judge import default_rules, evaluate_scores, mean
from vsum_runtime.training.runs import RunFolder
from vsum_runtime.training.train import Scorer


def test_watcher(dataset: Dataset, split: Split, folder: RunFolder) -> Callable[[int, Scorer], None]:
    """A ``watch`` of ``train_split`` that writes the file.

    Raises
    ------
    InputError
        test videos that cannot be judged, as fields are missing
    """
    rules = default_rules(dataset)
    videos = dataset.select(split.test_keys, need=("features", *rules.needs))

    def watch(epoch: int, score: Scorer) -> None:
        scores = {video.key: score(video) for video in videos}
        whole = mean(list(evaluate_scores(dataset, scores, split.test_keys, rules).values()))
        numbers = {"tau": whole.tau, "rho": whole.rho, "f_mean": whole.f_mean, "f_max": whole.f_max}
        line = {"epoch": epoch, **{k: None if math.isnan(v) else v for k, v in numbers.items()}}
        folder.write_peek([*(old for old in folder.read_peek() if old["epoch"] < epoch), line])  # resumed runs repeat

    return watch
