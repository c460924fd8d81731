"""From scores, shots and a budget to a Summary."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsum_runtime.kernels.knapsack import pack
from vsum_runtime.kernels.shot_scores import pool
from vsum_runtime.runtime.choice import Ruler, budget_in_frames, choose, keep_best_step
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.summary import Budget, Summary, parse_budget


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


@pytest.mark.parametrize(
    ("budget", "value", "unit"),
    [
        ("15%", 0.15, "ratio"),
        (" 7.5 % ", 0.075, "ratio"),
        ("0.15", 0.15, "ratio"),
        (np.float32(0.25), 0.25, "ratio"),
        (np.array(0.25), 0.25, "ratio"),
        (np.int64(1), 1.0, "ratio"),
        (Decimal("0.15"), 0.15, "ratio"),
        (Fraction(1, 4), 0.25, "ratio"),
        ("90s", 90.0, "s"),
        ("2m", 120.0, "s"),
        ("1.5 min", 90.0, "s"),
        ("1h", 3600.0, "s"),
        ("1h30m", 5400.0, "s"),
        ("1m 30s", 90.0, "s"),
        ("1:30", 90.0, "s"),
        ("1:02:03.5", 3723.5, "s"),
        ("90:00", 5400.0, "s"),
        (timedelta(minutes=2), 120.0, "s"),
        (np.timedelta64(1500, "ms"), 1.5, "s"),
    ],
)
def test_budgets_as_people_write_them(budget: Budget, value: float, unit: str) -> None:
    assert parse_budget(budget) == (value, unit)


@pytest.mark.parametrize(
    ("budget", "cure"),
    [
        ("120%", "100% keeps everything"),
        (90, "write 90s for seconds, 90% for percent"),
        ("90", "write 90s for seconds, 90% for percent"),
        (0, "above zero, got 0; write a share such as 15%"),
        ("-5%", "above zero, got '-5%'"),
        (Decimal("NaN"), "above zero, got NaN"),
        (np.timedelta64("NaT", "s"), "above zero, got NaT"),
        (timedelta(seconds=-1), "above zero, got -1 day"),
        ("1:75", "or a time such as 90s, 2m, 1:30 or 1h"),
        ("1,5%", "expected a share or a time, got '1,5%'"),
        (np.bool_(True), "expected a share or a time, got True"),
        ([0.1], r"expected a share or a time, got \[0.1\]"),
        (None, "expected a share or a time, got None"),
        (0.1 + 0j, "expected a share or a time"),
    ],
)
def test_a_budget_that_is_none_is_told_the_cure(budget: Budget, cure: str) -> None:
    with pytest.raises(InputError, match=cure):
        parse_budget(budget)


def test_the_note_on_split_shots_speaks_of_seconds_and_says_what_to_do() -> None:
    shots, times = np.array([[0, 40], [40, 60]]), np.arange(61) / 30

    def pieces(longest: int) -> np.ndarray:
        return np.array([[0, 20], [20, 40], [40, 60]])

    scores, picks = np.ones(6, np.float32), np.arange(0, 60, 10)
    choice = choose(scores, picks, shots, 60, 0.5, times, find_shots=pieces)
    assert choice.fallback == (
        "the longest shot, 1.3 s, exceeds the budget of 1.0 s, so long shots were split; "
        "a budget of 67% or more keeps them whole"
    )
    whole = choose(scores, picks, shots, 60, "67%", times, find_shots=pieces)
    assert (whole.fallback, whole.shots.tolist()) == ("", shots.tolist())
    assert (
        "40 frames, exceeds the budget of 30 frames"
        in choose(scores, picks, shots, 60, 0.5, find_shots=pieces).fallback
    )


def test_repr_is_one_line() -> None:
    assert repr(make_summary()) == "Summary(features of 60 frames: 1.0 s of 2.0 s, 2 of 4 shots)"
    named = make_summary(source=Path("/a/holiday.mp4"), frame_times_s=None)
    assert repr(named) == "Summary(holiday.mp4: 30 of 60 frames, 2 of 4 shots)"


def test_plot_without_a_name_is_shown_by_a_notebook() -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra: vsum-runtime[plot]")
    figure = make_summary().plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(figure.axes) == 2


def test_the_version_is_that_of_the_distribution() -> None:
    import vsum_runtime
    from vsum_runtime import runtime

    assert runtime.__version__ == vsum_runtime.__version__


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
    assert choose(scores, picks, shots, 20, 0.5, times).chosen.tolist() == [1]


def test_time_base_rounding_is_not_a_variable_frame_rate() -> None:
    times = np.round(np.arange(61) / 30, 3)
    scores = np.ones(4, np.float32)
    shots = np.array([[0, 15], [15, 30], [30, 45], [45, 60]])
    assert pack(
        pool(scores, np.array([0, 15, 30, 45]), shots, 60), Ruler.of(60, times).lengths(shots), 60
    ).tolist() == [0, 1, 2, 3]


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
    pieces, chosen = keep_best_step(np.array(scores, np.float32), picks, shots, Ruler.of(n_frames, None), budget)
    assert pieces[0, 0] == 0
    assert pieces[-1, 1] == n_frames
    assert (pieces[1:, 0] == pieces[:-1, 1]).all()
    assert (pieces[:, 1] > pieces[:, 0]).all()
    assert len(chosen) == 1
    start, end = pieces[chosen[0]]
    assert end - start == min(max(1, budget), n_frames)


@given(
    st.lists(st.floats(0.001, 0.9), min_size=2, max_size=40), st.floats(0.1, 6), st.integers(1, 4), st.integers(0, 99)
)
def test_at_a_variable_rate_every_fallback_keeps_the_budget(
    durations_s: list[float], budget_s: float, step: int, seed: int
) -> None:
    times = np.append(0, np.cumsum(durations_s))
    n_frames = len(durations_s)
    picks = np.arange(0, n_frames, step)
    scores = np.random.default_rng(seed).random(len(picks)).astype(np.float32)
    whole = np.array([[0, n_frames]])

    def find(max_steps: int) -> np.ndarray:
        starts = picks[::max_steps]
        return np.stack([starts, np.append(starts[1:], n_frames)], axis=1)

    for finder in (None, find):
        choice = choose(scores, picks, whole, n_frames, f"{budget_s:.3f}s", times, find_shots=finder)
        kept = choice.shots[choice.chosen]
        assert len(kept) > 0
        length_s = float((times[kept[:, 1]] - times[kept[:, 0]]).sum())
        ruler = Ruler.of(n_frames, times)  # of frames where none is as much as a frame from its place at a steady rate
        slack_s = 2 * times[-1] / n_frames if ruler.unit_s is None else 0.002
        if length_s > budget_s + len(kept) * slack_s:  # no frame is short enough: one is kept
            assert (len(kept), kept[0, 1] - kept[0, 0]) == (1, 1)
