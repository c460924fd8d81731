"""Cuts, dissolves and fades of films whose scenes are known, by every way of decoding; and films that only move."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.media.frames import FrameReader, read_frames
from vsum_runtime.runtime.media.sparse import Irregular
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

SIZE = (160, 96)
RATE = 24
LOOK = replace(EFFICIENTNET_LITE0, width=16, height=16)


def scene(rng: np.random.Generator) -> NDArray[np.float64]:
    """A still look [H, 3 W, 3], wider than a picture so that the camera can pan over it: waves over a colour."""
    rows, columns = np.mgrid[: SIZE[1], : 3 * SIZE[0]]
    look = np.zeros((SIZE[1], 3 * SIZE[0], 3)) + rng.uniform(20, 235, 3)
    for _ in range(6):
        waves = np.sin(rows * rng.uniform(0.01, 0.1) + columns * rng.uniform(0.01, 0.1) + rng.uniform(0, 6))
        look += waves[..., None] * rng.uniform(-25, 25, 3)
    return look


def shown(look: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """The picture [H, W, 3] at a time: the camera pans, and a square crosses the scene."""
    left = number // 4
    picture = look[:, left : left + SIZE[0]].copy()
    at = 2 * number % (SIZE[0] - 16)
    picture[30:46, at : at + 16] += 40
    return picture


def film(path: Path, pictures: list[NDArray[np.float64]], codec: str = "libx264", **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, options.pop("pix_fmt", "yuv420p")
        stream.options = options
        if "bf" in options:
            stream.codec_context.max_b_frames = int(options["bf"])
        if codec not in ("libx264", "libx265", "ffv1"):
            stream.codec_context.bit_rate = 2_000_000
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path, *, sparse: bool) -> FrameReader:
    with read_frames(path, LOOK, sparse=sparse) as reader:
        for _ in reader:
            pass
    return reader


X265 = "log-level=none:pools=1:bframes=3:keyint=250:scenecut=0"


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cuts.mp4", {}),
        ("long-groups.mp4", {"bf": "3", "x264-params": "scenecut=0:keyint=250:b-adapt=0"}),
        ("pyramid.mkv", {"bf": "7", "x264-params": "b-pyramid=normal:scenecut=0"}),
        ("ten-bits.mp4", {"pix_fmt": "yuv420p10le"}),
        ("hevc.mp4", {"codec": "libx265", "x265-params": X265}),
        ("mpeg2.ts", {"codec": "mpeg2video", "bf": "2"}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
    ],
)
def test_hard_cuts_to_the_frame(tmp_path: Path, name: str, settings: dict[str, str], sparse: bool) -> None:
    rng = np.random.default_rng(len(name))
    starts = np.cumsum(rng.integers(9, 70, 12))
    pictures = []
    for length in np.diff(starts, prepend=0):
        look = scene(rng)
        pictures += [shown(look, number) for number in range(length)]
    path = film(tmp_path / name, pictures, **settings)
    if sparse and name in ("mpeg2.ts", "rgb.mkv"):
        with pytest.raises(Irregular):  # these codecs do not tell what can be left out
            read(path, sparse=True)
    else:
        np.testing.assert_array_equal(read(path, sparse=sparse).cuts(), starts[:-1])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("through", ["each other", "black"])
def test_both_ends_of_dissolves_and_fades(tmp_path: Path, through: str, sparse: bool) -> None:
    rng, pictures, ranges, at = np.random.default_rng(7), [], [], 0
    before = scene(rng)
    for n_frames in (12, 24, 36, 12, 24, 36):
        pictures += [shown(before, at + number) for number in range(40)]
        at += 40
        behind = scene(rng)
        ranges.append([len(pictures), len(pictures) + n_frames])
        for number in range(at, at + n_frames):
            share = (number - at + 1) / (n_frames + 1)
            weights = (1 - share, share) if through == "each other" else (max(0, 1 - 2 * share), max(0, 2 * share - 1))
            pictures.append(weights[0] * shown(before, number) + weights[1] * shown(behind, number))
        before, at = behind, at + n_frames
    pictures += [shown(before, at + number) for number in range(40)]
    reader = read(film(tmp_path / "film.mp4", pictures), sparse=sparse)
    found = reader.transitions()
    assert len(found) == len(ranges)
    assert np.abs(found - ranges).mean() < 3
    assert len(reader.cuts()) == 0


def test_what_moves_and_what_flashes_is_no_cut(tmp_path: Path) -> None:
    look = scene(np.random.default_rng(1))
    pictures = [shown(look, 6 * number) for number in range(48)]  # a pan
    pictures[20] = np.full_like(pictures[0], 255)  # a flash
    reader = read(film(tmp_path / "film.mp4", pictures), sparse=False)
    assert (len(reader.cuts()), len(reader.transitions())) == (0, 0)


def test_a_film_of_one_picture_has_neither(tmp_path: Path) -> None:
    reader = read(film(tmp_path / "film.mp4", [shown(scene(np.random.default_rng(1)), 0)]), sparse=False)
    assert (len(reader.cuts()), len(reader.transitions())) == (0, 0)


def test_no_kept_shot_holds_a_flash_of_another_scene(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(30, 80, 14)
    pictures = []
    for length in lengths:
        look = scene(rng)
        pictures += [shown(look, number) for number in range(length)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    path = film(tmp_path / "film.mp4", pictures)
    with Summarizer() as summarizer:
        summaries = [summarizer.summarize(path, budget=budget) for budget in (0.15, 0.3, 0.5)]
    for summary in summaries:
        assert 0 < summary.frames.sum() <= summary.budget_frames
        for first, end in summary.ranges:
            # Where a scene begins or ends within a second of a border, the border is on it.
            for border in (first, end):
                near = starts[np.abs(starts - border) <= RATE // 2]
                assert len(near) == 0 or border in near
