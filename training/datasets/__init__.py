"""Data sets: HDF5 files, split files and annotation tables -> checked arrays in our conventions.

``videos`` reads a data set file, ``splits`` the files that divide one, ``annotations`` TVSum's table of people's
scores; ``preparation`` writes a copy that has all that evaluation needs, and ``cli`` is the door ``vsum-datasets``.
"""

from vsum_runtime.training.datasets.preparation import prepare, user_summaries_from_scores
from vsum_runtime.training.datasets.splits import Split, Splits, check_numbers, read_splits
from vsum_runtime.training.datasets.videos import (
    BUDGET_PERCENT,
    Dataset,
    Video,
    find_file,
    importance_at_picks,
    read_dataset,
    unit_rows,
)

__all__ = [
    "BUDGET_PERCENT",
    "Dataset",
    "Split",
    "Splits",
    "Video",
    "check_numbers",
    "find_file",
    "importance_at_picks",
    "prepare",
    "read_dataset",
    "read_splits",
    "unit_rows",
    "user_summaries_from_scores",
]
