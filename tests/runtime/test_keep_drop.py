"""Stretches that must be in a summary, and stretches that must not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.media.clips import check_film, write_clip
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.choice import choose
from vsum_runtime.runtime.cli.summarize import main
from vsum_runtime.runtime.errors import InputError


def test_kept_stretches_are_in_and_dropped_ones_out_whatever_the_shots(rng: np.random.Generator) -> None:
    for _ in range(200):
        n_frames = int(rng.integers(60, 300))
        picks = np.arange(0, n_frames, 6)
        scores = rng.random(len(picks), dtype=np.float32)
        bounds = np.concatenate([[0], np.unique(rng.choice(picks[1:], 6)), [n_frames]])
        shots = np.stack([bounds[:-1], bounds[1:]], axis=1)
        ends = np.sort(rng.choice(n_frames, 4, replace=False))
        keep, drop = ends[None, :2], ends[None, 2:]
        cuts = np.unique(rng.integers(1, n_frames, 6))
        budget = min(1.0, (ends[1] - ends[0] + int(rng.integers(2, 40))) / n_frames)

        def find(max_steps: int, picks: np.ndarray = picks, n_frames: int = n_frames) -> np.ndarray:
            starts = picks[::max_steps]
            return np.stack([starts, np.append(starts[1:], n_frames)], axis=1)

        none = np.empty((0, 2), dtype=np.int64)
        choice = choose(
            scores, picks, shots, n_frames, budget, find_shots=find, scene_changes=(cuts, none), keep=keep, drop=drop
        )
        shown = np.zeros(n_frames, dtype=np.bool_)
        for start, end in choice.shots[choice.chosen]:
            shown[start:end] = True
        assert shown[ends[0] : ends[1]].all()
        assert not shown[ends[2] : ends[3]].any()
        assert shown.sum() <= choice.budget_frames
        assert choice.shots[0, 0] == 0
        assert choice.shots[-1, 1] == n_frames
        np.testing.assert_array_equal(choice.shots[1:, 0], choice.shots[:-1, 1])


def test_without_wishes_shots_are_used_as_given() -> None:
    shots = np.array([[0, 10], [20, 30], [30, 40]])  # of somebody who leaves a part out
    scores = np.array([0.1, 0.9, 0.5, 0.3], dtype=np.float32)
    choice = choose(scores, np.arange(0, 40, 10), shots, 40, 0.5, may_be_empty=True)
    np.testing.assert_array_equal(choice.shots, shots)
    assert choice.chosen.tolist() == [1, 2]


def test_the_last_resort_keeps_out_of_what_is_dropped() -> None:
    scores = np.array([0.1, 0.2, 0.9, 0.3], dtype=np.float32)
    shots = np.array([[0, 40]])
    for budget in (0.1, 0.2, 0.4):
        choice = choose(scores, np.arange(0, 40, 10), shots, 40, budget, drop=np.array([[20, 32]]))
        kept = choice.shots[choice.chosen]
        assert 0 < (kept[:, 1] - kept[:, 0]).sum() <= 40 * budget
        assert ((kept[:, 1] <= 20) | (kept[:, 0] >= 32)).all()


@pytest.mark.parametrize(
    ("keep", "drop", "message"),
    [
        ([(0, 3)], [], "keep: expected ranges that fit the budget of 1.0 s, got 3.0 s"),
        ([(3.5, 4.5)], [], "keep: expected a stretch within the video's 4.0 s, got 3.5 to 4.5 s"),
        ([], [(2, 2)], "drop: expected a stretch within"),
        ([], [(-1, 2)], "drop: expected a stretch within"),
        ([(0.5, 1)], [(0.9, 2)], "expected stretches apart from each other"),
        ([], [(0, 4)], "drop: expected to leave a part of the video"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, keep: list[tuple[float, float]], drop: list[tuple[float, float]], message: str
) -> None:
    film = write_clip(tmp_path / "film.mp4", 120)
    with Summarizer() as summarizer, pytest.raises(InputError, match=re.escape(message)):
        summarizer.summarize(film, budget=0.25, keep=keep, drop=drop)


def test_the_command_keeps_to_the_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = write_clip(tmp_path / "film.mp4", 150)
    out = tmp_path / "s.mp4"
    wishes = ["--keep", "0:01-0:02", "--drop", "2s-4s"]
    assert main([str(film), "-o", str(out), "--budget", "2s", *wishes]) == 0
    numbers = check_film(out, [[30, 60]]).numbers
    assert set(range(30, 60)) <= set(numbers)
    assert not set(range(60, 120)) & set(numbers)
    capsys.readouterr()


@pytest.mark.parametrize("text", ["5-10", "0:20-0:10", "10s", "-5s", "a-b", "10%-20%"])
def test_a_stretch_that_cannot_be_read_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["film.mp4", f"--keep={text}"]) == 2
    assert "expected START-END such as 0:10-0:20" in capsys.readouterr().err


def test_another_budget_chooses_again_without_decoding(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mp4", 150)
    with Summarizer() as summarizer:
        summary = summarizer.summarize(film, budget=0.2)
    film.unlink()
    for budget in (0.2, "2s", 0.6, 1.0):
        again = summary.with_budget(budget)
        assert 0 < again.frames.sum() <= again.budget_frames
        assert again.shot_scores.shape == again.shots.shape[:1]
    assert again.frames.all()
    np.testing.assert_array_equal(summary.with_budget(0.2).ranges, summary.ranges)
