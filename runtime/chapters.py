"""The shots of a summary as chapters: WebVTT, FFmpeg's metadata, or lines for the description of a YouTube video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.stills import vtt_time

if TYPE_CHECKING:
    from vsum_runtime.runtime.summary import Summary

FORMS = {".vtt": "vtt", ".ffmetadata": "ffmetadata", ".txt": "youtube"}
"""Suffix of a file -> form."""
_YOUTUBE_LEAST_S, _YOUTUBE_LEAST = 10.0, 3  # what YouTube takes for chapters


def chapters(summary: Summary, form: str) -> str:
    """Every shot as a chapter of the source, the kept ones marked.

    Parameters
    ----------
    form
        "vtt", "ffmetadata" or "youtube"; YouTube takes chapters of 10 s and more, so shorter shots join the one before

    Raises
    ------
    InputError
        an unknown form; a summary of features without times; fewer than three chapters for YouTube
    """
    times_s = summary.frame_times_s
    if times_s is None:
        raise InputError("chapters: this summary was made from features without fps=; frame times are not known")
    kept = set(summary.chosen.tolist())
    marked = [
        (float(times_s[start]), float(times_s[end]), f"Shot {number + 1}" + (" (kept)" if number in kept else ""))
        for number, (start, end) in enumerate(summary.shots.tolist())
    ]
    if form == "vtt":
        cues = [f"{title}\n{vtt_time(start)} --> {vtt_time(end)}\n{title}\n" for start, end, title in marked]
        return "\n".join(["WEBVTT\n", *cues])
    if form == "ffmetadata":
        blocks = [
            f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={round(1000 * start)}\nEND={round(1000 * end)}\ntitle={title}\n"
            for start, end, title in marked
        ]
        return "\n".join([";FFMETADATA1", *blocks])
    if form != "youtube":
        raise InputError(f"chapters: expected one of {', '.join(FORMS.values())}, got {form!r}")
    joined: list[tuple[float, str]] = []
    for start, _, title in marked:
        if not joined or start - joined[-1][0] >= _YOUTUBE_LEAST_S:
            joined.append((start, title))
    if len(joined) > 1 and float(times_s[-1]) - joined[-1][0] < _YOUTUBE_LEAST_S:
        joined.pop()
    if len(joined) < _YOUTUBE_LEAST:
        raise InputError(
            f"chapters: YouTube takes {_YOUTUBE_LEAST} or more of {_YOUTUBE_LEAST_S:.0f} s and longer, "
            f"this video gives {len(joined)}; write WebVTT instead (.vtt)"
        )
    return "".join(f"{_clock(start)} {title}\n" for start, title in joined)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:{'02' if hours else ''}}:{whole % 60:02}"
