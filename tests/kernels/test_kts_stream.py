from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.kernels import kts
from vsum_runtime.kernels.kts_stream import Stream


def shots(rng: np.random.Generator, n_steps: int, size: int, length: int = 25) -> NDArray[np.float64]:
    rows = np.repeat(rng.gamma(0.4, size=(n_steps // length + 1, size)), length, axis=0)[:n_steps]
    rows = rows + 0.1 * np.abs(rng.standard_normal((n_steps, size)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_rows(rng: np.random.Generator, n_steps: int, size: int) -> NDArray[np.float64]:
    kind = rng.integers(3)
    if kind == 0:
        return shots(rng, n_steps, size, int(rng.integers(4, 80)))
    if kind == 1:
        return rng.standard_normal((n_steps, size))
    return np.cumsum(rng.standard_normal((n_steps, size)), axis=0) * rng.choice([0.01, 0.1])


def pushed(stream: Any, rows: NDArray[np.float64], sizes: Sequence[int]) -> list[int]:
    """All cuts of a stream fed in blocks of the given sizes, over and over."""
    cuts, at, turn = [], 0, 0
    while at < len(rows):
        size = sizes[turn % len(sizes)]
        cuts += stream.push(rows[at : at + size]).tolist()
        at, turn = at + size, turn + 1
    return cuts


@pytest.mark.parametrize("seed", range(12))
def test_the_cuts_are_those_of_the_whole_sequence_unless_one_was_forced(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_exact = 0
    for _ in range(8):
        rows = some_rows(rng, int(rng.integers(1, 600)), int(rng.integers(2, 10)))
        longest = int(rng.integers(20, 200))
        shortest = int(rng.integers(1, 12)) if rng.random() < 0.4 else 1
        steps_per_cut, penalty = float(rng.uniform(2, 50)), float(rng.choice([0.05, 0.3, 1.0]))
        stream = Stream(
            steps_per_cut=steps_per_cut,
            max_steps=longest,
            min_steps=shortest,
            max_delay=longest * int(rng.integers(1, 5)),
            penalty=penalty,
        )
        cuts = pushed(stream, rows, [1, 3, 16, 100, 700])
        exact = stream.n_forced == 0
        cuts += stream.finish().tolist()
        lengths = np.diff([0, *cuts, len(rows)])
        assert lengths.max() <= longest
        if exact and lengths.min() >= shortest:
            n_exact += 1
            slope = kts.slope(steps_per_cut, penalty=penalty)
            whole = kts.change_points_at_slope(rows, slope, min_steps=shortest, max_steps=longest)
            assert cuts == whole.tolist()
    assert n_exact >= 2


def test_the_cuts_are_those_of_the_offline_search_at_its_own_rate(rng: np.random.Generator) -> None:
    rows = shots(rng, 2000, 16)
    offline = kts.change_points(rows, max_steps=100)
    stream = Stream(steps_per_cut=len(rows) / len(offline), max_steps=100)
    cuts = pushed(stream, rows, [50])
    assert stream.n_forced == 0
    assert cuts + stream.finish().tolist() == offline.tolist()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_size_of_the_blocks_does_not_matter(rng: np.random.Generator, size: int) -> None:
    rows = shots(rng, 700, 8)
    cuts = [
        pushed(stream := Stream(steps_per_cut=25, max_steps=80), rows, [s]) + stream.finish().tolist()
        for s in (size, 50)
    ]
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 20


def test_memory_and_delay_are_bounded_on_an_endless_shot(rng: np.random.Generator) -> None:
    stream = Stream(steps_per_cut=30, max_steps=100, max_delay=150)
    rows = shots(rng, 40, 8, length=40)
    for _ in range(200):
        stream.push(rows)
        assert stream.n_pending < 150
        assert len(stream._rows) == 150 + 64
    assert stream.n_steps == 8000


def test_a_cut_comes_about_one_shot_later(rng: np.random.Generator) -> None:
    rows = shots(rng, 3000, 32, length=60)
    stream = Stream(steps_per_cut=60, max_steps=300)
    delays = []
    for at in range(0, len(rows), 10):
        delays += [at + 10 - cut for cut in stream.push(rows[at : at + 10]).tolist()]
    assert len(delays) > 40
    assert np.median(delays) <= 60 + 20


def test_repeated_rows_make_no_cuts() -> None:
    stream = Stream(steps_per_cut=30, max_steps=1000)
    assert pushed(stream, np.ones((900, 3)), [90]) == []
    assert stream.finish().tolist() == []


def test_an_empty_stream_and_an_empty_block_make_no_cuts() -> None:
    stream = Stream(steps_per_cut=30, max_steps=100)
    assert stream.finish().tolist() == []
    assert stream.push(np.zeros((0, 4))).tolist() == []
    assert stream.push(np.zeros((3, 4))).tolist() == []
    assert stream.push(np.zeros((0, 4))).tolist() == []
    assert stream.n_steps == 3


def test_a_finished_stream_begins_anew(rng: np.random.Generator) -> None:
    rows = shots(rng, 300, 8)
    stream = Stream(steps_per_cut=25, max_steps=80)
    first = pushed(stream, rows, [40]) + stream.finish().tolist()
    assert stream.n_steps == stream.n_forced == 0
    assert pushed(stream, rows[:, :5], [40]) + stream.finish().tolist() != []
    assert pushed(stream, rows, [40]) + stream.finish().tolist() == first


def test_a_refused_block_leaves_the_stream_as_it_was(rng: np.random.Generator) -> None:
    rows = shots(rng, 300, 8)
    expected = pushed(calm := Stream(steps_per_cut=25, max_steps=80), rows, [30]) + calm.finish().tolist()
    stream = Stream(steps_per_cut=25, max_steps=80)
    cuts = stream.push(rows[:150]).tolist()
    bad = rows[150:160].copy()
    bad[4, 2] = np.nan
    for block, message in [
        (bad, "NaN or infinity"),
        (rows[150:160, :7], r"expected \[n, 8\] float64 as before, got \(10, 7\)"),
        (rows[150:160].astype(np.float32), "float64 as before, got .* float32"),
        (rows[150], "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.push(block)
    cuts += stream.push(rows[150:]).tolist() + stream.finish().tolist()
    assert cuts == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_cut": 1.0}, "steps_per_cut: .*got 1.0"),
        ({"steps_per_cut": np.nan}, "steps_per_cut"),
        ({"min_steps": 0}, "min_steps, max_steps: .*got 0 and 100"),
        ({"min_steps": 101}, "min_steps, max_steps: .*got 101 and 100"),
        ({"max_delay": 99}, "max_delay: expected at least max_steps = 100, got 99"),
        ({"penalty": 0.0}, "penalty: .*got 0.0"),
        ({"sampling": 0.0}, "sampling: .*got 0.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(**{"steps_per_cut": 30.0, "max_steps": 100, **options})
