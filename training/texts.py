"""Texts of videos: token ids in side files -> token rows for a BERT.

A side file is one HDF5 file per video, ``<video key>.h5``, with the datasets ``cat``, ``query``, ``title`` and, for
pretraining, ``description``: ids of the vocabulary of BERT base uncased [n], without [CLS] and [SEP], possibly empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.bert import CLS, PAD, SEP


@dataclass(frozen=True)
class Text:
    """What is written about one video, as int64 token ids [n] per field."""

    category: Tensor
    query: Tensor
    title: Tensor
    description: Tensor
    """Empty where the file has none."""


def read_texts(folder: str | Path, keys: Iterable[str]) -> dict[str, Text]:
    """Read the side files of the videos ``keys``.

    Raises
    ------
    InputError
        a missing or unreadable file, or a field that is not token ids [n]; video and field named
    """
    return {key: _read(Path(folder) / f"{key}.h5") for key in keys}


def token_row(fields: Sequence[Tensor], limits: Sequence[int] | None = None, *, cut_anywhere: bool = False) -> Tensor:
    """``[CLS] field [SEP] field [SEP] ...``, int64 [L].

    Parameters
    ----------
    fields                    int64 [n] each
    limits                    ids per field: a longer one is cut, a shorter one filled up with [PAD]; None: as they are
    cut_anywhere : bool
        keep a part at a random place (of torch's global generator) instead of the beginning

    >>> token_row([torch.tensor([7, 8, 9]), torch.tensor([5])], limits=(2, 3)).tolist()
    [101, 7, 8, 102, 5, 0, 0, 102]
    """
    parts = [torch.tensor([CLS])]
    for field, limit in zip(fields, limits or [len(field) for field in fields], strict=True):
        spare = max(len(field) - limit, 0)
        first = int(torch.randint(spare + 1, ())) if cut_anywhere else 0
        kept = field[first : first + limit]
        parts += [kept, torch.full((limit - len(kept),), PAD), torch.tensor([SEP])]
    return torch.cat(parts)


def _read(path: Path) -> Text:
    fields = {}
    with hdf5.open_file(path, "an HDF5 file with the video's token ids") as file:
        for name in ("cat", "query", "title", "description"):
            fields[name] = _ids(hdf5.field(file, name, str(path)), f"{path}/{name}", required=name != "description")
    return Text(fields["cat"], fields["query"], fields["title"], fields["description"])


def _ids(stored: hdf5.Field | None, place: str, *, required: bool) -> Tensor:
    if stored is None:
        if required:
            raise InputError(f"{place}: expected token ids [n], but it is missing; store an empty array for no text")
        return torch.empty(0, dtype=torch.int64)
    if len(stored.shape) == 1 and (stored.dtype.kind in "iuf" or stored.shape == (0,)):
        ids = stored.read()
        if not ids.size:
            return torch.empty(0, dtype=torch.int64)
        if (ids == np.trunc(ids)).all() and ids.min() >= 0 and ids.max() < 2**31:
            return torch.from_numpy(ids.astype(np.int64))
    raise InputError(f"{place}: expected token ids [n], integers >= 0, got {stored.dtype} {list(stored.shape)}")
