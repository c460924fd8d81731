"""A Summary -> its picture: the score over time, the shots, and which of them were kept."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, MissingPackageError
from vsum_runtime.runtime.targets import PLOT, check_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vsum_runtime.runtime.summary import Summary

FORMATS = (".png", ".svg", ".pdf")

_INK, _QUIET, _KEPT, _LEFT_OUT = "#1b2a41", "#6b7685", "#e8590c", "#d5dae1"
_KEPT_FILL = "#fbc9a6"
_MOST_STEPS, _MOST_SHOTS = 400, 150  # drawn one by one


def plot(summary: Summary, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Draw a summary into a file. The horizontal axis is time, or frames where times are not known.

    Parameters
    ----------
    summary
        Summary
    out : file to write
        .png, .svg or .pdf
    overwrite
        replace a picture or film that was not drawn here; never the video itself

    Returns
    -------
    Path
        `out`

    Raises
    ------
    InputError
        on another suffix, a missing folder, or a file that is not to be overwritten
    MissingPackageError
        matplotlib is not installed
    """
    target = checked_target(out, summary.source, overwrite=overwrite)
    figure = draw(summary)
    # No dates and no random names inside: the same summary gives the same file.
    suffix = target.suffix.lower()
    marks: dict[str, dict[str, str | None]] = {
        ".png": {"Software": PLOT},
        ".svg": {"Date": None, "Creator": PLOT},
        ".pdf": {"CreationDate": None, "Creator": PLOT},
    }
    from matplotlib import rc_context

    with _any_script(), rc_context({"svg.hashsalt": "vsum"}), replacing(target) as temporary:
        figure.savefig(temporary, format=suffix[1:], metadata=marks[suffix])
    return target


def checked_target(out: str | os.PathLike[str], source: Path | None, *, overwrite: bool = False) -> Path:
    """The file to draw into, where it may be written; else an InputError."""
    target = Path(out)
    if target.suffix.lower() not in FORMATS:
        raise InputError(f"plot: expected a name ending in {', '.join(FORMATS)}, got {target.name}")
    check_target(target, sources=[source], mark=PLOT, overwrite=overwrite)
    return target


def require_matplotlib() -> None:
    """Raise a MissingPackageError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError.of("plot", "matplotlib", "plot")


def draw(summary: Summary) -> Figure:
    """Draw a summary as a matplotlib figure, which a notebook shows where it is the value of a cell."""
    require_matplotlib()
    from matplotlib.figure import Figure

    class Drawing(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            with _any_script():
                self.savefig(file, format="png")
            return file.getvalue()

    figure = Drawing(figsize=(12, 4.2), dpi=150, layout="constrained")
    curve, film = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    position = _positions(summary)
    _draw_curve(curve, summary, position)
    _draw_film(film, summary, position)
    _write_titles(curve, summary)
    _label_time(film, summary, position)
    for axes in (curve, film):
        axes.tick_params(colors=_QUIET, labelsize=9)
        axes.spines[:].set_visible(False)
    return figure


@contextmanager
def _any_script() -> Iterator[None]:
    """A name in any script is no mistake, even where the font lacks it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _positions(summary: Summary) -> NDArray[np.float64]:
    """[N + 1] where each frame begins on the horizontal axis, and where the last one ends."""
    if summary.frame_times_s is None:
        return np.arange(summary.n_frames + 1, dtype=np.float64)
    return np.asarray(summary.frame_times_s - summary.frame_times_s[0], dtype=np.float64)


def _draw_curve(axes: Any, summary: Summary, position: NDArray[np.float64]) -> None:
    """The score of every step, held until the next one; under it, filled, what was kept; over it the shots' means."""
    # More steps than the picture has room for are drawn in groups: their mean as the curve, their range as a band.
    firsts = np.arange(0, len(summary.scores), -(-len(summary.scores) // _MOST_STEPS))
    counts = np.diff(firsts, append=len(summary.scores))
    scores = np.add.reduceat(summary.scores.astype(np.float64), firsts) / counts
    edges = np.append(summary.picks[firsts], summary.n_frames)
    low, high = (extreme.reduceat(summary.scores, firsts) for extreme in (np.minimum, np.maximum))
    label = "score"
    if counts[0] > 1:
        label = f"score, mean of {counts[0]} steps"
        axes.stairs(high, position[edges], baseline=low, fill=True, color=_LEFT_OUT, label="range")
    for start, end in summary.ranges:
        inside = np.unique(np.concatenate([[start, end], edges[(edges > start) & (edges < end)]]))
        held = scores[np.searchsorted(edges, inside[:-1], side="right") - 1]
        axes.stairs(held, position[inside], fill=True, color=_KEPT_FILL, zorder=2)
    axes.stairs(scores, position[edges], color=_INK, linewidth=1.2, baseline=None, label=label, zorder=3)
    if len(summary.shots) <= _MOST_SHOTS:
        for chosen, colour, label in ((False, _QUIET, "mean of a shot"), (True, _KEPT, "mean of a kept shot")):
            mask = _is_chosen(summary) == chosen
            starts, ends = position[summary.shots[mask]].T
            axes.hlines(summary.shot_scores[mask], starts, ends, color=colour, linewidth=2.2, label=label, zorder=4)
    bottom, top = min(0.0, float(low.min())), float(high.max())
    axes.set_ylim(bottom, top + 0.06 * ((top - bottom) or 1.0))
    axes.set_xlim(position[0], position[-1])
    axes.set_ylabel("score", color=_QUIET)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color=_LEFT_OUT, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_film(axes: Any, summary: Summary, position: NDArray[np.float64]) -> None:
    """The film as a strip, one box per shot."""
    starts, ends = position[summary.shots].T
    colours = np.where(_is_chosen(summary), _KEPT, _LEFT_OUT).tolist()
    gap = 0.8 if len(summary.shots) <= _MOST_SHOTS else 0.0
    axes.barh(0, ends - starts, left=starts, height=1, color=colours, edgecolor="white", linewidth=gap)
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])


def _is_chosen(summary: Summary) -> NDArray[np.bool_]:
    chosen = np.zeros(len(summary.shots), dtype=np.bool_)
    chosen[summary.chosen] = True
    return chosen


def _write_titles(axes: Any, summary: Summary) -> None:
    kept, frames = int(summary.frames.sum()), summary.n_frames
    if summary.frame_times_s is None:
        amount = f"{kept} of {frames} frames"
    else:
        span_s = summary.source_duration_s
        amount = f"{_clock(summary.duration_s, span_s)} of {_clock(span_s, span_s)}"
    lines = [f"{amount} kept ({kept / frames:.0%}), {len(summary.chosen)} of {len(summary.shots)} shots"]
    if summary.fallback:
        lines.append(summary.fallback)
    name = "Summary" if summary.source is None else summary.source.name
    pad = 8 + 16 * len(lines)
    axes.set_title(name, loc="left", fontsize=13, fontweight="bold", color=_INK, pad=pad, parse_math=False)
    place = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points", "va": "bottom"}
    axes.annotate("\n".join(lines), (0, 1), color=_QUIET, fontsize=10, parse_math=False, **place)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=9, labelcolor=_QUIET)


def _label_time(axes: Any, summary: Summary, position: NDArray[np.float64]) -> None:
    if summary.frame_times_s is None:
        axes.set_xlabel("frame", color=_QUIET)
        return
    axes.set_xlabel("time", color=_QUIET)
    span_s = float(position[-1])
    steps_s = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step_s = next((step for step in steps_s if span_s / step <= 13), span_s / 10)
    ticks = np.arange(0, span_s + 1e-9, step_s)
    axes.set_xticks(ticks, [_clock(tick, span_s) for tick in ticks])


def _clock(seconds: float, span_s: float) -> str:
    """A time as people write it: 4.2 s within two minutes, 1:05 or 2:00:07 in longer films."""
    if span_s <= 120:
        return f"{seconds:.1f}".removesuffix(".0") + " s" if span_s > 5 else f"{seconds:.2g} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if span_s >= 3600 else f"{whole // 60}:{rest:02}"
