"""Pictures of summaries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime.errors import InputError, MissingPackageError
from vsum_runtime.runtime.plot import plot
from vsum_runtime.runtime.summary import Summary

pytest.importorskip("matplotlib")


def summary(n_shots: int = 8, **changes: Any) -> Summary:
    n_frames = 90 * n_shots
    picks = np.arange(0, n_frames, 15)
    starts = np.arange(n_shots) * 90
    fields: dict[str, Any] = {
        "scores": (0.5 + 0.4 * np.sin(picks / 50)).astype(np.float32),
        "picks": picks,
        "n_frames": n_frames,
        "shots": np.stack([starts, starts + 90], axis=1),
        "shot_scores": 0.5 + 0.4 * np.sin(starts / 50),
        "chosen": np.array([1, 2, 5]),
        "budget_frames": 270,
        "frame_times_s": np.arange(n_frames + 1) / 30,
        "source": Path("holiday.mp4"),
    }
    return Summary(**(fields | changes))


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    out = tmp_path / f"plot{suffix}"
    assert plot(summary(), out) == out
    assert out.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(("n_shots", "chosen"), [(8, [1, 2, 5]), (1, [0]), (400, list(range(0, 400, 7))), (8, [])])
def test_the_strip_shows_the_kept_share(tmp_path: Path, n_shots: int, chosen: list[int]) -> None:
    from matplotlib.image import imread

    plot(summary(n_shots, chosen=np.array(chosen, dtype=np.int64)), tmp_path / "plot.png")
    picture = imread(tmp_path / "plot.png")[:, :, :3]
    orange = np.abs(picture - np.array([0xE8, 0x59, 0x0C]) / 255).max(axis=2) < 0.1
    grey = np.abs(picture - np.array([0xD5, 0xDA, 0xE1]) / 255).max(axis=2) < 0.02
    row = int(np.argmax((orange | grey)[400:].sum(axis=1))) + 400
    share = orange[row].sum() / (orange | grey)[row].sum()
    assert share == pytest.approx(len(chosen) / n_shots, abs=0.03)


def test_the_same_summary_gives_the_same_file(tmp_path: Path) -> None:
    for suffix in (".svg", ".pdf"):
        first, second = (plot(summary(), tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
        assert first == second


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_times_s": None, "source": None},
        {"scores": np.zeros(48, np.float32)},
        {"scores": np.full(48, -2.5, np.float32)},
        {"fallback": "shots longer than the budget were split"},
        {"source": Path("100% $money$ 漢字.mp4")},
        {"frame_times_s": np.sort(np.random.default_rng(0).uniform(0, 7300, 721))},
        {"frame_times_s": np.arange(721) / 10000},
    ],
    ids=["frames", "zeros", "negative", "fallback", "any-name", "uneven-hours", "milliseconds"],
)
def test_every_kind_of_summary_can_be_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert plot(summary(**changes), tmp_path / "plot.svg").stat().st_size > 10_000


def test_the_words_tell_what_was_kept(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = plot(summary(), tmp_path / "plot.svg").read_text()
    assert "holiday.mp4" in text
    assert "9 s of 24 s kept (38%), 3 of 8 shots" in text


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf, got plot\.txt"):
        plot(summary(), tmp_path / "plot.txt")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r'pip install "vsum-runtime\[plot\]"'):
        plot(summary(), tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
