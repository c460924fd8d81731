from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.texts import read_texts, token_row


def write(folder: Path, key: str, **fields: object) -> None:
    with h5py.File(folder / f"{key}.h5", "w") as file:
        for name, value in ({"cat": [5], "query": [], "title": [7, 8, 9]} | fields).items():
            if value is not None:
                file[name] = value


def test_side_files_are_read_with_empty_fields_and_without_description(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", description=np.array([1, 2], np.int32))
    texts = read_texts(tmp_path, ["a", "b"])
    assert texts["a"].title.tolist() == [7, 8, 9]
    assert texts["a"].query.tolist() == texts["a"].description.tolist() == []
    assert texts["b"].description.tolist() == [1, 2]
    assert texts["b"].description.dtype == torch.int64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("title", None, r"a.h5/title: expected token ids \[n\], but it is missing"),
        ("cat", [[1, 2]], r"a.h5/cat: expected token ids .* got int64 \[1, 2\]"),
        ("query", [0.5], "a.h5/query: expected token ids"),
        ("query", [-1], "a.h5/query: expected token ids"),
        ("query", b"dog", "a.h5/query: expected token ids"),
    ],
)
def test_fields_that_are_not_token_ids_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    write(tmp_path, "a", **{field: value})
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path, ["a"])


def test_a_missing_side_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b.h5: expected an HDF5 file with the video's token ids"):
        read_texts(tmp_path, ["b"])


def test_rows_as_long_as_the_published_settings_say() -> None:
    fields = [torch.arange(100), torch.arange(0), torch.arange(1)]
    assert len(token_row(fields, (1, 3, 1))) == 9
    assert len(token_row(fields, (1, 3, 10))) == 18
    assert len(token_row([*fields, torch.arange(3)], (2, 2, 5, 50))) == 64
    assert token_row(fields[1:]).tolist() == [101, 102, 0, 102]


def test_a_field_cut_anywhere_is_a_random_run_of_it() -> None:
    torch.manual_seed(0)
    rows = {tuple(token_row([torch.arange(1000, 1004)], [2], cut_anywhere=True).tolist()[1:-1]) for _ in range(60)}
    assert rows == {(1000, 1001), (1001, 1002), (1002, 1003)}
