"""Features of real films in files: the standard layout, and a cache that is used only while it is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.cli.features import main
from vsum_runtime.runtime.extractor import Extracted
from vsum_runtime.runtime.feature_files import Cache
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0, Recipe
from vsum_runtime.training.datasets import read_dataset


def test_the_file_is_what_the_pipeline_sees(media: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = media.film("a.mp4", 90), media.film("b.mkv", 60)
    (media.folder / "broken.mp4").write_bytes(b"")
    out = media.folder / "data.h5"
    assert main([str(first), str(media.folder / "broken.mp4"), str(second), "-o", str(out)]) == 1
    assert "0 bytes" in capsys.readouterr().err
    with Summarizer() as summarizer, h5py.File(out) as file:
        assert list(file) == ["video_1", "video_2"]
        for name, path in (("video_1", first), ("video_2", second)):
            summary, group = summarizer.summarize(path), file[name]
            given = {key: group[key][()] for key in group}
            assert given["video_name"] == path.name.encode()
            assert given["n_frames"] == summary.n_frames == given["n_frame_per_seg"].sum()
            assert given["n_steps"] == len(given["features"]) == len(summary.picks)
            np.testing.assert_array_equal(given["picks"], summary.picks)
            assert given["change_points"][0, 0] == 0
            assert given["change_points"][-1, 1] == summary.n_frames - 1
            np.testing.assert_array_equal(summarizer.score([given["features"]])[0], summary.scores)
            assert group.attrs["recipe_sha256"] == summarizer.recipe.digest
            assert Recipe.from_dict(json.loads(group.attrs["recipe"])) == summarizer.recipe
    read = read_dataset(out)
    assert list(read.videos) == ["video_1", "video_2"]
    assert summarizer.recipe.digest in read.recipe


def test_nothing_is_written_where_nothing_could_be_read(tmp_path: Path) -> None:
    assert main([str(tmp_path / "absent.mp4"), "-o", str(tmp_path / "data.h5")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_cached_video_is_not_decoded_again(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    film, cache = media.film("film.mp4", 60), media.folder / "cache"
    with Summarizer(cache=cache) as summarizer:
        before = summarizer.summarize(film)
    (stored,) = cache.iterdir()
    with Summarizer(cache=cache) as summarizer, monkeypatch.context() as patch:
        patch.setattr("vsum_runtime.runtime.media.frames.read_frames", None)
        after = summarizer.summarize(film.rename(media.folder / "renamed.mp4"))
        np.testing.assert_array_equal(after.scores, before.scores)
        np.testing.assert_array_equal(after.frame_times_s, before.frame_times_s)
    stored.write_bytes(stored.read_bytes()[:500])
    with Summarizer(cache=cache) as summarizer:
        np.testing.assert_array_equal(summarizer.summarize(media.folder / "renamed.mp4").scores, before.scores)
        summarizer.summarize(media.film("film.mp4", 75))
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_of_the_cache_is_never_taken_for_good(tmp_path: Path, rng: np.random.Generator) -> None:
    """Bytes changed anywhere, ends cut off: what was put there comes out, or nothing."""
    cache, digest = Cache(tmp_path / "cache"), "ab" * 32
    recipe = EFFICIENTNET_LITE0
    given = Extracted(
        rng.normal(size=(3, recipe.feature_dim)).astype(np.float32), np.arange(0, 9, 3), 9, np.arange(10.0)
    )
    cache.put(digest, recipe, given)
    (file,) = cache.folder.iterdir()
    whole = file.read_bytes()
    n_refused = 0
    for number in range(200):
        data = bytearray(whole)
        if number % 4 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:  # two in three in the file's own structures
            place = int(rng.integers(len(data) if number % 4 == 1 else 2048))
            data[place] ^= int(rng.integers(1, 256))
        file.write_bytes(data)
        found = cache.get(digest, recipe)
        if found is None:
            n_refused += 1
            continue
        np.testing.assert_array_equal(found.features, given.features)
        np.testing.assert_array_equal(found.picks, given.picks)
        np.testing.assert_array_equal(found.frame_times_s, given.frame_times_s)
    assert n_refused > 50
