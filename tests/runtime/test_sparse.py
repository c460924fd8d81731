"""Leaving out what nobody needs gives what decoding everything gives, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.extractor import preprocess
from vsum_runtime.runtime.media import sparse as sparse_module
from vsum_runtime.runtime.media.decode import find_video, open_container
from vsum_runtime.runtime.media.frames import FrameReader, read_frames
from vsum_runtime.runtime.media.sparse import Irregular, decode_some
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE, Summarizer
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0, Recipe

SMALL = replace(EFFICIENTNET_LITE0, width=64, height=48)
EVERY = replace(SMALL, rate_hz=None, stride=1)
SEVENTH = replace(SMALL, rate_hz=None, stride=7)
B_FRAMES = {"preset": "medium", "bf": "3", "g": "40"}


def read(path: Path, recipe: Recipe, *, sparse: bool, n_threads: int = 1) -> tuple[np.ndarray, FrameReader]:
    with read_frames(path, recipe, sparse=sparse, n_threads=n_threads) as reader:
        blocks = list(reader)
    return np.concatenate(blocks), reader


def assert_the_same(path: Path, recipe: Recipe, n_threads: int = 1) -> None:
    whole_pictures, whole = read(path, recipe, sparse=False)
    pictures, reader = read(path, recipe, sparse=True, n_threads=n_threads)
    np.testing.assert_array_equal(pictures, whole_pictures)
    np.testing.assert_array_equal(reader.picks, whole.picks)
    np.testing.assert_array_equal(reader.frame_times_s, whole.frame_times_s)
    assert reader.n_frames == whole.n_frames


@pytest.fixture
def n_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every picture that `runtime.media.sparse` decodes."""
    times: list[int] = []
    real = sparse_module._Decoding._receive

    def receive(self: Any, packet: Any) -> None:
        if packet.size:
            times.append(packet.pts)
        real(self, packet)

    monkeypatch.setattr(sparse_module._Decoding, "_receive", receive)
    return times


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "ultrafast"},
        B_FRAMES,
        {**B_FRAMES, "x264-params": "b-pyramid=none:open-gop=1"},
        {**B_FRAMES, "bf": "7", "x264-params": "b-pyramid=normal:b-adapt=0:open-gop=1:ref=5"},
        {**B_FRAMES, "x264-params": "b-pyramid=strict:slices=4"},
        {**B_FRAMES, "x264-params": "intra-refresh=1"},
        {**B_FRAMES, "tune": "zerolatency"},
    ],
    ids=["no b", "b", "open gop", "pyramid", "slices", "no key frames", "no delay"],
)
def test_the_same_pictures_frames_and_times(media: Any, name: str, options: dict[str, str]) -> None:
    path = media.film(name, 110, options=options)
    for recipe in (SMALL, SEVENTH, EVERY):
        assert_the_same(path, recipe)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
@pytest.mark.parametrize(
    "options",
    ["bframes=0", "bframes=3", "open-gop=0:b-pyramid=0", "temporal-layers=3:bframes=3", "slices=2", "intra-refresh=1",
     "keyint=20:min-keyint=20:open-gop=0:repeat-headers=1", "bframes=7:b-adapt=0:ref=5"],
)  # fmt: skip
def test_the_same_of_hevc(media: Any, name: str, options: str) -> None:
    options = f"log-level=none:keyint=40:{options}"
    path = media.film(name, 110, codec="libx265", options={"preset": "medium", "x265-params": options})
    for recipe in (SMALL, SEVENTH, EVERY):
        assert_the_same(path, recipe)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_any_number_of_threads(media: Any, n_threads: int) -> None:
    assert_the_same(media.film("film.mp4", 110, options=B_FRAMES), SMALL, n_threads)


def test_what_nobody_needs_is_not_decoded(media: Any, n_decoded: list[int]) -> None:
    path = media.film("film.mp4", 240, options={**B_FRAMES, "x264-params": "b-adapt=0:b-pyramid=none"})
    _, reader = read(path, SMALL, sparse=True)
    assert reader.n_frames == 240
    assert 60 <= len(n_decoded) < 120  # every fourth, those that are sampled and those that were tried
    n_decoded.clear()
    read(path, EVERY, sparse=True)
    assert len(n_decoded) == 240


@pytest.mark.parametrize(("layers", "most"), [(1, 120), (3, 150)])
def test_what_nobody_needs_in_hevc_is_not_decoded(media: Any, n_decoded: list[int], layers: int, most: int) -> None:
    x265 = f"log-level=none:keyint=60:bframes=3:b-adapt=0:b-pyramid={int(layers > 1)}:temporal-layers={layers}"
    path = media.film("film.mp4", 240, codec="libx265", options={"preset": "medium", "x265-params": x265})
    _, reader = read(path, SMALL, sparse=True)
    assert reader.n_frames == 240
    assert 60 <= len(n_decoded) < most


def test_pictures_before_the_next_restart_are_not_decoded(media: Any, n_decoded: list[int]) -> None:
    path = media.film("film.mp4", 200, options={"preset": "ultrafast", "g": "50"})
    ranks = iter(range(200))
    with open_container(path) as container:
        frames = list(decode_some(container, find_video(container, path), lambda *_: next(ranks) in (60, 61, 199)))
    assert media.numbers(np.stack([frame.to_ndarray(format="rgb24") for frame in frames])) == [60, 61, 199]
    assert len(n_decoded) == 1 + 12 + 50  # the first of all, and each from its restart


def test_few_decoded_pictures_are_held(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = media.film("film.mp4", 200, options={**B_FRAMES, "g": "200"})
    held: list[int] = []
    real = sparse_module._Decoding._receive

    def receive(self: Any, packet: Any) -> None:
        real(self, packet)
        held.append(len(self._decoded))

    monkeypatch.setattr(sparse_module._Decoding, "_receive", receive)
    ranks = iter(range(200))
    with open_container(path) as container:
        assert len(list(decode_some(container, find_video(container, path), lambda *_: next(ranks) == 199))) == 1
    assert max(held) <= 8


def test_variable_rate(media: Any, rng: np.random.Generator) -> None:
    times = np.concatenate([[0], np.cumsum(rng.choice([0.02, 0.05, 0.4, 1.3], size=119))]).tolist()
    for name in ("film.mp4", "film.mkv", "film.ts"):
        assert_the_same(media.film(name, 120, times_s=times, options=B_FRAMES), SMALL)


def test_a_film_that_starts_late(media: Any) -> None:
    times = [10 + i / 25 for i in range(100)]
    for name in ("film.mp4", "film.mkv", "film.ts"):
        assert_the_same(media.film(name, 100, times_s=times, options=B_FRAMES), SMALL)


@pytest.mark.parametrize("name", ["big_buck_bunny_60s.mp4", "sintel_26s.mp4"])
def test_real_films(real_data: Path, name: str) -> None:
    path = real_data / "videos" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    assert_the_same(path, SMALL)


def changed(path: Path, name: str, change: Callable[[int, Any], bool]) -> Path:
    """A copy of a film's packets, each as `change` makes it; those for which it is false are left out."""
    copy = path.with_name(name)
    with av.open(str(path)) as source, av.open(str(copy), "w") as film:
        stream = film.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and change(number, packet):
                packet.stream = stream
                film.mux(packet)
    return copy


def irregular(media: Any, rng: np.random.Generator, kind: str) -> Path:
    """A film that cannot be told from its packets."""
    if kind == "no time stamps":
        return media.film("film.h264", 60, options=B_FRAMES)
    if kind == "times in decoding order":
        return media.film("film.avi", 120, options=B_FRAMES)
    if kind == "interlaced":
        return media.film("film.ts", 60, options={**B_FRAMES, "x264-params": "tff=1"})
    if kind == "mpeg4":
        return media.film("film.mp4", 60, codec="mpeg4")
    if kind == "no picture could be read":
        return media.damaged(media.film("film.mp4", 200, options=B_FRAMES), rng)
    if kind == "damaged transport stream":
        return media.damaged(media.film("film.ts", 200, options=B_FRAMES), rng)
    if kind == "begins between key frames":
        source = media.film("film.ts", 120, options=B_FRAMES)
        return changed(source, "late.ts", lambda number, packet: number >= 13)
    if kind == "begins with pictures that refer to what is not there":
        x265 = "log-level=none:keyint=40:min-keyint=40:open-gop=1"
        source = media.film("film.ts", 160, codec="libx265", options={"preset": "medium", "x265-params": x265})
        return changed(source, "late.ts", lambda number, packet: number >= 36)  # a key frame, leading ones
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "no time stamps",
        "times in decoding order",
        "interlaced",
        "mpeg4",
        "no picture could be read",
        "damaged transport stream",
        "begins between key frames",
        "begins with pictures that refer to what is not there",
    ],
)
def test_what_cannot_be_told_is_said(media: Any, rng: np.random.Generator, kind: str) -> None:
    path = irregular(media, rng, kind)
    with pytest.raises(Irregular):
        read(path, SMALL, sparse=True)
    assert read(path, SMALL, sparse=False)[1].n_frames > 0


def test_joined_recordings_whose_clock_starts_again(media: Any) -> None:
    path = media.folder / "joined.ts"
    path.write_bytes(b"".join(media.film(f"{n}.ts", 60, options=B_FRAMES).read_bytes() for n in "ab"))
    assert_the_same(path, EVERY)


@pytest.mark.parametrize("kind", ["a good film", "damaged transport stream", "times in decoding order"])
def test_features_are_those_of_the_whole_film(media: Any, rng: np.random.Generator, kind: str) -> None:
    good = media.film("film.mp4", 120, options=B_FRAMES)
    path = good if kind == "a good film" else irregular(media, rng, kind)
    pictures, reader = read(path, EFFICIENTNET_LITE0, sparse=False)
    with Summarizer() as summarizer:
        found = summarizer.extract(path)
        session = open_session(DEFAULT_BUNDLE / EFFICIENTNET_LITE0.network)
        expected = session.run({"images": preprocess(pictures, EFFICIENTNET_LITE0)})[0]
    np.testing.assert_allclose(found.features, expected, atol=1e-4)
    np.testing.assert_array_equal(found.picks, reader.picks)
    np.testing.assert_array_equal(found.frame_times_s, reader.frame_times_s)
    assert found.n_frames == reader.n_frames


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_a_few_damaged_bytes_change_nothing_or_are_noticed(media: Any, name: str, codec: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = {**B_FRAMES, "crf": "20", "x265-params": "log-level=none:keyint=40"}
    path = media.film(name, 90, codec=codec, options=options, size=(96, 64), paint=lambda _: noisy(rng))
    data = bytearray(path.read_bytes())
    start = int(rng.uniform(0.2, 0.8) * len(data))
    data[start : start + 40] = rng.bytes(40) if seed % 2 else bytes(40)
    path.write_bytes(data)
    try:
        read(path, SMALL, sparse=True)
    except Irregular:
        return
    assert_the_same(path, SMALL)


def noisy(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 255, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def test_frames_of_an_edit_list_that_are_not_shown(media: Any) -> None:
    """Cameras and phones trim by an edit list: what is before it is decoded and not shown."""
    path = media.film("film.mp4", 120, options=B_FRAMES)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # size and name, version, count; then duration and start in ticks of the track
    assert data[at - 8] == 0
    start = int.from_bytes(data[at + 4 : at + 8], "big")
    with open_container(path) as container:
        tick: Fraction = find_video(container, path).time_base
    data[at + 4 : at + 8] = (start + int(Fraction(7, 30) / tick)).to_bytes(4, "big")
    path.write_bytes(data)
    whole = read(path, SMALL, sparse=False)[1]
    assert whole.n_frames < 120
    try:
        read(path, SMALL, sparse=True)
    except Irregular:
        return
    assert_the_same(path, SMALL)
