"""What a user wants to know of a model before choosing it; each model's class carries one as ``card``."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """Stated facts; what is measured is in ``measured.json`` beside this file."""

    task: str
    """"supervised", "unsupervised" or "weakly supervised"."""
    paper: str
    """Short title and venue."""
    year: int
    licence: str
    """Terms of the authors' own code. None of that code is in this project."""
