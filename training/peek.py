"""What picking the epoch on the test videos would have shown, kept apart from what is chosen.

Most published numbers are of the epoch that is best on test. ``peek.jsonl`` beside a run's log holds the agreement with
the test videos' annotators after every epoch, so that a table can show such a number beside the honest one. Selection
(``training/selection.py``) sees the log alone; no rule, no resumed run and no checkpoint reads this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.training.datasets import Dataset, Split
from vsum_runtime.training.judge import default_rules, evaluate_scores, mean
from vsum_runtime.training.train import Scorer

FILE = "peek.jsonl"


def test_watcher(dataset: Dataset, split: Split, folder: Path) -> Callable[[int, Scorer], None]:
    """A ``watch`` of ``train_split`` that writes ``peek.jsonl``.

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
        lines = [*(old for old in read(folder) if old["epoch"] < epoch), line]  # a resumed run repeats epochs
        with replacing(folder / FILE) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")

    return watch


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``peek.jsonl``; none where there is no such file."""
    path = folder / FILE
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
