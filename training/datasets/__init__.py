"""Data sets: HDF5 files, split files and annotation tables -> checked arrays in our conventions.

- ``videos`` is a data set in memory; ``reader`` reads it from a file.
- ``splits`` divides it; ``split_files`` reads the forms of split files.
- ``annotations`` reads TVSum's table of people's scores.
- ``preparation`` writes a copy of a file that has all that evaluation needs; ``cli`` is its command, ``vsum-datasets``.
"""

from vsum_runtime.training.datasets.preparation import prepare, user_summaries_from_scores
from vsum_runtime.training.datasets.reader import read_dataset
from vsum_runtime.training.datasets.splits import Split, Splits, check_numbers, read_splits
from vsum_runtime.training.datasets.videos import (
    BUDGET_PERCENT,
    Dataset,
    Video,
    find_file,
    importance_at_picks,
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
