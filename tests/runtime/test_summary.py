"""From scores, shots and a budget to a Summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsum_runtime.runtime.choice import budget_in_frames, keep_best_step, pack_shots
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.summary import Summary, parse_budget


def make_summary(**changes: object) -> Summary:
    fields: dict[str, object] = {
        "scores": np.array([0.1, 0.9, 0.8, 0.2], dtype=np.float32),
        "picks": np.array([0, 15, 30, 45]),
        "n_frames": 60,
        "shots": np.array([[0, 15], [15, 30], [30, 45], [45, 60]]),
        "shot_scores": np.array([0.1, 0.9, 0.8, 0.2]),
        "chosen": np.array([1, 2]),
        "budget_frames": 30,
        "frame_times_s": np.arange(61) / 30,
    }
    return Summary(**(fields | changes))  # type: ignore[arg-type]


def test_neighbouring_shots_are_joined_into_one_range() -> None:
    summary = make_summary()
    assert summary.ranges.tolist() == [[15, 45]]
    assert summary.frames.sum() == 30
    assert summary.duration_s == pytest.approx(1.0)
    assert summary.segments_s.tolist() == [[0.5, 1.5]]


def test_separate_shots_stay_separate() -> None:
    assert make_summary(chosen=np.array([0, 2, 3])).ranges.tolist() == [[0, 15], [30, 60]]


def test_json_carries_everything_a_player_needs() -> None:
    data = json.loads(make_summary(source=Path("/somewhere/film.mp4"), model="toy").to_json())
    assert data["source"] == "film.mp4"
    assert data["segments"] == [[15, 45]]
    assert data["summary_frames"] == 30
    assert [shot["chosen"] for shot in data["shots"]] == [False, True, True, False]
    assert data["shots"][1]["start_s"] == 0.5
    assert data["fallback"] is None


def test_json_of_features_alone_has_no_seconds() -> None:
    summary = make_summary(frame_times_s=None)
    assert "duration_s" not in json.loads(summary.to_json())
    with pytest.raises(InputError, match="frame times are not known"):
        summary.duration_s  # noqa: B018


def test_write_video_without_a_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Summarizer\.summarize"):
        make_summary().write_video(tmp_path / "x.mp4")


@pytest.mark.parametrize("budget", ["", "abc", "-5%", 0, -1, 1.5, "150%", float("nan"), True, "0s"])
def test_budget_that_is_none_is_refused(budget: float | str) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_budget(budget)


@pytest.mark.parametrize(
    ("budget", "frames"), [(0.15, 150), ("15%", 150), ("5s", 125), ("90s", 1000), (1, 1000), ("0.5s", 12)]
)
def test_budget_is_rounded_down_to_frames(budget: float | str, frames: int) -> None:
    assert budget_in_frames(budget, 1000, 40.0) == frames


@given(st.integers(1, 400_000))
def test_fifteen_percent_equals_the_reference_rule(n_frames: int) -> None:
    assert budget_in_frames(0.15, n_frames, None) == (15 * n_frames) // 100


def test_budget_in_seconds_needs_a_frame_rate() -> None:
    with pytest.raises(InputError, match="pass fps="):
        budget_in_frames("5s", 100, None)


def test_variable_frame_rate_is_packed_by_time() -> None:
    """Two shots of ten frames each, but the first lasts nine times as long: only the second fits half the time."""
    times = np.concatenate([np.arange(10) * 0.9, 9 + np.arange(11) * 0.1])
    scores, picks = np.ones(2, np.float32), np.array([0, 10])
    shots = np.array([[0, 10], [10, 20]])
    assert pack_shots(scores, picks, shots, 20, 10, times)[1].tolist() == [1]


def test_time_base_rounding_is_not_a_variable_frame_rate() -> None:
    times = np.round(np.arange(61) / 30, 3)
    scores = np.ones(4, np.float32)
    shots = np.array([[0, 15], [15, 30], [30, 45], [45, 60]])
    assert pack_shots(scores, np.array([0, 15, 30, 45]), shots, 60, 60, times)[1].tolist() == [0, 1, 2, 3]


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12),
    st.integers(0, 40),
    st.integers(1, 7),
    st.integers(1, 12),
)
def test_last_resort_keeps_one_piece_within_budget(scores: list[float], budget: int, step: int, n_shots: int) -> None:
    n_frames = len(scores) * step
    starts = np.unique(np.linspace(0, n_frames, n_shots, endpoint=False).astype(int))
    shots = np.stack([starts, np.append(starts[1:], n_frames)], axis=1)
    picks = np.arange(len(scores)) * step
    pieces, chosen = keep_best_step(np.array(scores, np.float32), picks, shots, n_frames, budget)
    assert pieces[0, 0] == 0
    assert pieces[-1, 1] == n_frames
    assert (pieces[1:, 0] == pieces[:-1, 1]).all()
    assert (pieces[:, 1] > pieces[:, 0]).all()
    assert len(chosen) == 1
    start, end = pieces[chosen[0]]
    assert end - start == min(max(1, budget), n_frames)
