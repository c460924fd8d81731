"""Scores, shots and a budget in, a Summary out: which shots are kept, and what can be done with them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.targets import FILM, check_target

Budget: TypeAlias = SupportsFloat | str | timedelta
"""How much a summary may keep: a share (0.15, "15%") or a time ("90s", "1:30", a timedelta); see `parse_budget`."""

_log = logging.getLogger(__name__)

CUTS = ("exact", "smart", "copy")


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """The chosen shots of one video, and everything they were chosen from."""

    scores: NDArray[np.float32]
    """[T] importance of each sampled step, 0 to 1."""
    picks: NDArray[np.int64]
    """[T] source frame of each step."""
    n_frames: int
    """Frames of the source video (N)."""
    shots: NDArray[np.int64]
    """[S, 2] first frame and one past the last frame of every shot; together they tile the video."""
    shot_scores: NDArray[np.float64]
    """[S] mean frame score of each shot."""
    chosen: NDArray[np.int64]
    """[K] the shots that are kept, ascending."""
    budget_frames: int
    """Frames the summary might hold."""
    frame_times_s: NDArray[np.float64] | None = None
    """[N + 1] presentation time of each frame, and the end of the last; None when only features were given."""
    fallback: str = ""
    """What was done to avoid an empty summary; empty when nothing had to be done."""
    model: str = ""
    """Name of the model that scored."""
    source: Path | None = None
    """The video, when there is one."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the video: it is cut off, parts of it are damaged."""

    def __repr__(self) -> str:
        name = self.source.name if self.source is not None else f"features of {self.n_frames} frames"
        if self.frame_times_s is None:
            amount = f"{int(self.frames.sum())} of {self.n_frames} frames"
        else:
            amount = f"{self.duration_s:.1f} s of {self.source_duration_s:.1f} s"
        return f"Summary({name}: {amount}, {len(self.chosen)} of {len(self.shots)} shots)"

    @property
    def ranges(self) -> NDArray[np.int64]:
        """[K, 2] kept source frames, half-open, neighbouring shots joined."""
        kept = self.shots[self.chosen]
        if len(kept) == 0:
            return kept
        first = np.append(True, kept[1:, 0] != kept[:-1, 1])
        last = np.append(first[1:], True)
        return np.stack([kept[first, 0], kept[last, 1]], axis=1)

    @property
    def frames(self) -> NDArray[np.bool_]:
        """[N] True on every kept frame."""
        mask = np.zeros(self.n_frames, dtype=np.bool_)
        for start, end in self.ranges:
            mask[start:end] = True
        return mask

    @property
    def segments_s(self) -> NDArray[np.float64]:
        """[K, 2] start and end of every kept range in seconds.

        Raises
        ------
        InputError
            the summary was made from features alone, so frame times are not known
        """
        if self.frame_times_s is None:
            raise InputError("seconds: this summary was made from features without fps=; frame times are not known")
        return self.frame_times_s[self.ranges]

    @property
    def duration_s(self) -> float:
        """Length of the summary in seconds."""
        segments = self.segments_s
        return float((segments[:, 1] - segments[:, 0]).sum())

    @property
    def source_duration_s(self) -> float:
        """Length of the source video in seconds."""
        if self.frame_times_s is None:
            raise InputError("seconds: this summary was made from features without fps=; frame times are not known")
        return float(self.frame_times_s[-1] - self.frame_times_s[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON. Frames are counted from 0, ranges are half-open."""
        chosen = set(self.chosen.tolist())
        times = self.frame_times_s
        shots = [
            {"start_frame": int(start), "end_frame": int(end), "score": float(value), "chosen": s in chosen}
            | ({} if times is None else {"start_s": float(times[start]), "end_s": float(times[end])})
            for s, ((start, end), value) in enumerate(zip(self.shots, self.shot_scores, strict=True))
        ]
        seconds: dict[str, Any] = {}
        if times is not None:
            seconds = {
                "duration_s": self.duration_s,
                "source_duration_s": self.source_duration_s,
                "segments_s": self.segments_s.tolist(),
            }
        return {
            "version": 1,
            "source": None if self.source is None else self.source.name,
            "model": self.model,
            "n_frames": self.n_frames,
            "budget_frames": self.budget_frames,
            "summary_frames": int((self.ranges[:, 1] - self.ranges[:, 0]).sum()),
            "fallback": self.fallback or None,
            "warnings": list(self.warnings),
            **seconds,
            "segments": self.ranges.tolist(),
            "shots": shots,
            "picks": self.picks.tolist(),
            "scores": [float(value) for value in self.scores],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def with_budget(self, budget: Budget) -> Summary:
        """The same video, scores and shots, chosen again for another budget; nothing is decoded.

        The shots stay: where the new budget is far below the first one, a part of the best shot may be all that fits.

        Raises
        ------
        InputError
            a budget that cannot be read, or in seconds where times are unknown
        """
        from vsum_runtime.runtime.choice import choose

        choice = choose(self.scores, self.picks, self.shots, self.n_frames, budget, self.frame_times_s)
        return replace(self, **vars(choice))

    def write_video(
        self,
        path: str | os.PathLike[str],
        *,
        cut: str = "exact",
        audio: str | None = None,
        overwrite: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Path:
        """Write the kept shots as a video with sound.

        Parameters
        ----------
        cut
            "exact" encodes the kept frames anew; "copy" takes them over as they are, many times faster, and every shot
            then grows back to a key frame; "smart" copies whole groups of pictures and encodes only what lies before
            and after them, and where that cannot be right, or saves nothing, cuts exactly and logs why
        audio
            sound tracks of the film: a number from 1, a language as the file states it ("eng"), or "all". Default: the
            file's default track
        overwrite
            replace a film or picture that was not written here; the source itself is never overwritten

        Raises
        ------
        InputError
            the summary was made from features, so there is no video to cut; an unknown cut; a sound track that is not
            there; a file that is not to be overwritten
        VideoError
            the source cannot be read, or the file cannot be written; nothing half-written is left
        """
        if self.source is None:
            raise InputError("write_video: this summary was made from features; use Summarizer.summarize(video)")
        if cut not in CUTS:
            raise InputError(f"cut: expected {', '.join(CUTS[:-1])} or {CUTS[-1]}, got {cut!r}")
        check_target(path, sources=[self.source], mark=FILM, overwrite=overwrite)
        if cut == "copy":
            from vsum_runtime.runtime.media.film_copy import copy_summary

            assert self.frame_times_s is not None
            copy_summary(self.source, self.ranges, self.frame_times_s, path, audio=audio, progress=progress)
            return Path(path)
        if cut == "smart":
            from vsum_runtime.runtime.media.film_smart import Unsuited, smart_summary

            assert self.frame_times_s is not None
            try:
                return smart_summary(self.source, self.ranges, self.frame_times_s, path, audio=audio, progress=progress)
            except Unsuited as reason:
                _log.warning("%s: cut exactly, not smartly: %s", self.source, reason)
        from vsum_runtime.runtime.media.film import write_summary

        return write_summary(
            self.source, self.ranges, Path(path), frame_times_s=self.frame_times_s, audio=audio, progress=progress
        )

    def write_clips(
        self,
        folder: str | os.PathLike[str],
        *,
        cut: str = "exact",
        audio: str | None = None,
        suffix: str = ".mp4",
        overwrite: bool = False,
        write: Callable[..., Path] | None = None,
    ) -> list[Path]:
        """Write every kept shot as a video of its own, named by its order and start: ``01_0-01-23.mp4``.

        Parameters
        ----------
        folder
            made where it does not exist
        cut, audio, overwrite
            as `write_video`
        suffix
            of the files
        write
            writes one summary as `write_video` does, which is the default

        Returns
        -------
        list of Path
            in the order of the shots
        """
        times_s = self.frame_times_s
        if self.source is None or times_s is None:
            raise InputError("write_clips: this summary was made from features; use Summarizer.summarize(video)")
        target = Path(folder)
        clips = []
        for number, shot in enumerate(self.chosen.tolist(), 1):
            seconds = int(times_s[self.shots[shot, 0]])
            start = f"{seconds // 3600}-{seconds // 60 % 60:02}-{seconds % 60:02}"
            clips.append((replace(self, chosen=np.array([shot])), target / f"{number:02}_{start}{suffix}"))
        target.mkdir(parents=True, exist_ok=True)
        for _, path in clips:
            check_target(path, sources=[self.source], mark=FILM, overwrite=overwrite)
        for one, path in clips:
            (write or Summary.write_video)(one, path, cut=cut, audio=audio, overwrite=overwrite)
        return [path for _, path in clips]

    def best_frame(self) -> int:
        """The frame that shows the video best, `runtime.stills`; decodes a few."""
        from vsum_runtime.runtime import stills

        return stills.best_frame(self)

    def write_thumbnail(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the best frame at full size, as .jpg, .png or .webp."""
        from vsum_runtime.runtime import stills

        return stills.write_thumbnail(self, path, overwrite=overwrite)

    def write_storyboard(
        self, path: str | os.PathLike[str], *, every_s: float | None = None, overwrite: bool = False
    ) -> tuple[Path, Path]:
        """Write a sheet of small frames (.jpg, .png, .webp), one of each shot or every `every_s` seconds.

        Returns
        -------
        Path, Path
            the picture, and beside it the WebVTT file by which players show it over their time line
        """
        from vsum_runtime.runtime import stills

        return stills.write_storyboard(self, path, every_s=every_s, overwrite=overwrite)

    def chapters(self, form: str = "vtt") -> str:
        """Every shot as a chapter, the kept ones marked: "vtt", "ffmetadata" or "youtube"."""
        from vsum_runtime.runtime.chapters import chapters

        return chapters(self, form)

    @overload
    def plot(self, path: None = None) -> Any: ...

    @overload
    def plot(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Any:
        """Draw the score curve, the shots and the chosen shots.

        Parameters
        ----------
        path
            file to write; the suffix picks the format (png, svg, pdf). None: a matplotlib figure is returned, which a
            notebook shows
        overwrite
            replace a picture or film that was not drawn here; never the video itself
        """
        from vsum_runtime.runtime import plot

        return plot.draw(self) if path is None else plot.plot(self, Path(path), overwrite=overwrite)


def parse_budget(budget: Budget) -> tuple[float, str]:
    """Read a budget: a share (0.15, "15%") or a time ("90s", "2m", "1h", "1h30m", "1:30", "1:30:00", a timedelta).

    Any kind of number is a share: of Python, NumPy, `Decimal`, `Fraction`.

    Returns
    -------
    (value, unit)
        unit is "ratio" or "s"

    Raises
    ------
    InputError
        another form, zero or less, not finite, more than the whole video

    Examples
    --------
    >>> parse_budget("15%"), parse_budget("1:30"), parse_budget(0.2)
    ((0.15, 'ratio'), (90.0, 's'), (0.2, 'ratio'))
    """
    number, unit = _number_and_unit(budget)
    if not math.isfinite(number) or number <= 0:
        raise InputError(f"budget: expected a finite share or time above zero, got {_shown(budget)}; {_FORMS}")
    if unit == "ratio" and number > 1:
        given = str(budget).strip()
        cure = "100% keeps everything" if given.endswith("%") else f"write {given}s for seconds, {given}% for percent"
        raise InputError(f"budget: expected a share of at most 1, which is 100%, got {_shown(budget)}; {cure}")
    return number, unit


_FORMS = "write a share such as 15% or 0.15, or a time such as 90s, 2m, 1:30 or 1h"
_UNIT_S = {"h": 3600, "m": 60, "s": 1}


def _number_and_unit(budget: Budget) -> tuple[float, str]:
    if isinstance(budget, np.timedelta64):
        return float(budget / np.timedelta64(1, "s")), "s"
    plain = budget.item() if isinstance(budget, (np.generic, np.ndarray)) and budget.ndim == 0 else budget
    if isinstance(plain, timedelta):
        return plain.total_seconds(), "s"
    if isinstance(plain, str):
        return _number_of_text(plain)
    if isinstance(plain, bool) or not isinstance(plain, (Real, Decimal)):
        raise InputError(f"budget: expected a share or a time, got {_shown(budget)}; {_FORMS}")
    return float(plain), "ratio"


def _number_of_text(text: str) -> tuple[float, str]:
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    spelt = text.strip().lower()
    if match := re.fullmatch(rf"{number}\s*(%?)", spelt):
        return float(Decimal(match[1]) / (100 if match[2] else 1)), "ratio"
    if match := re.fullmatch(r"(?:(\d+):)?(\d+):([0-5]?\d(?:\.\d*)?)", spelt):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3])
        if not (match[1] and minutes > 59):
            return 3600 * hours + 60 * minutes + seconds, "s"
    units = (rf"(?:{number}\s*{unit})?" for unit in ("h(?:ours?|rs?)?", "m(?:in(?:ute)?s?)?", "s(?:ec(?:ond)?s?)?"))
    if spelt and (match := re.fullmatch(r"\s*".join(units), spelt)):
        return sum(_UNIT_S[unit] * float(part or 0) for unit, part in zip("hms", match.groups(), strict=True)), "s"
    if re.fullmatch(rf"-\s*{number}.*|nan|[+-]?inf(inity)?", spelt):
        raise InputError(f"budget: expected a finite share or time above zero, got {text!r}; {_FORMS}")
    raise InputError(f"budget: expected a share or a time, got {text!r}; {_FORMS}")


def _shown(budget: object) -> str:
    return repr(budget) if isinstance(budget, str) else str(budget)
