"""Borders of shots move to cuts and to the ends of transitions, and kept shots never outgrow the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime.borders import moved_to_cuts
from vsum_runtime.runtime.choice import choose

PICKS = np.arange(0, 240, 12)
SHOTS = np.array([[0, 60], [60, 120], [120, 180], [180, 240]])
NONE = np.empty((0, 2), dtype=np.int64)


def starts(
    chosen: list[int], cuts: Sequence[int] = (), transitions: Sequence[Sequence[int]] = (), room: int = 240
) -> NDArray[np.int64]:
    kept = np.array(chosen)

    def fits(shots: NDArray[np.int64]) -> bool:
        return bool((shots[kept, 1] - shots[kept, 0]).sum() <= room)

    ranges = np.array(transitions, dtype=np.int64).reshape(-1, 2)
    moved = moved_to_cuts(SHOTS, kept, PICKS, np.array(cuts, dtype=np.int64), ranges, fits)
    assert moved[0, 0] == 0
    assert moved[-1, 1] == 240
    np.testing.assert_array_equal(moved[1:, 0], moved[:-1, 1])
    return moved[1:, 0]


@pytest.mark.parametrize(
    ("cut", "border"),
    [
        (55, 55),  # between the last sample of the old scene and the first of the new one
        (37, 37),  # a sample earlier, as of a scene that resembles the one before
        (36, 60),  # too far back
        (72, 72),
        (73, 60),  # too far ahead
    ],
)
def test_a_border_moves_to_the_cut_that_it_stands_for(cut: int, border: int) -> None:
    assert starts([1], cuts=[cut]).tolist() == [border, 120, 180]


def test_the_nearest_of_several_cuts_counts() -> None:
    assert starts([1], cuts=[40, 57, 68]).tolist() == [57, 120, 180]


def test_a_transition_is_left_out_of_the_kept_shot() -> None:
    assert starts([1], transitions=[[50, 66], [110, 128]]).tolist() == [66, 110, 180]


def test_a_transition_between_two_kept_shots_or_two_others_stays() -> None:
    assert starts([1, 2], transitions=[[110, 128], [172, 190]]).tolist() == [60, 120, 172]


def test_a_kept_shot_grows_only_within_the_budget() -> None:
    assert starts([1], cuts=[50]).tolist() == [50, 120, 180]
    assert starts([1], cuts=[50], room=60).tolist() == [60, 120, 180]
    assert starts([1], cuts=[50, 108], room=60).tolist() == [50, 108, 180]  # what it gains before, it lost behind


def test_two_borders_never_take_the_same_cut() -> None:
    shots = np.array([[0, 48], [48, 60], [60, 240]])
    moved = moved_to_cuts(shots, np.array([1]), PICKS, np.array([54]), NONE, lambda _: True)
    assert (moved[:, 1] > moved[:, 0]).all()


def test_any_shots_and_cuts(rng: np.random.Generator) -> None:
    for _ in range(300):
        n_frames = int(rng.integers(20, 400))
        picks = np.arange(0, n_frames, int(rng.integers(1, 15)))
        scores = rng.random(len(picks), dtype=np.float32)
        inner = np.unique(rng.choice(picks[1:], size=min(len(picks) - 1, 8)))
        bounds = np.concatenate([[0], inner, [n_frames]])
        shots = np.stack([bounds[:-1], bounds[1:]], axis=1)
        cuts = np.unique(rng.integers(1, n_frames, rng.integers(0, 12)))
        first = np.sort(rng.choice(n_frames - 5, 2, replace=False))
        ranges = np.stack([first, np.minimum(first + rng.integers(1, 30, 2), n_frames)], axis=1)
        choice = choose(scores, picks, shots, n_frames, 0.3, scene_changes=(cuts, ranges))
        kept = choice.shots[choice.chosen]
        assert (choice.shots[:, 1] > choice.shots[:, 0]).all()
        assert choice.shots[0, 0] == 0
        assert choice.shots[-1, 1] == n_frames
        np.testing.assert_array_equal(choice.shots[1:, 0], choice.shots[:-1, 1])
        assert len(choice.shot_scores) == len(choice.shots)
        assert 0 < (kept[:, 1] - kept[:, 0]).sum() <= max(1, choice.budget_frames)
