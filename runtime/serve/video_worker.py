"""One task on one video in a process of its own: what decodes a stranger's file may crash, hang or be killed alone.

The task is a line of JSON on standard input, which then stays open as long as the server lives. Standard output carries
lines of JSON: ``{"begun": true}`` first, ``{"progress": share}`` and ``{"stage": name, "seconds": s}`` while it runs,
then ``{"done": true}`` or ``{"error": message, "status": code}``. What is made lies in the task's folder ``work``.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vsum_runtime.runtime.errors import DiskError, TooLargeError, VsumError
from vsum_runtime.runtime.serve.tether import end_with_parent
from vsum_runtime.runtime.summary import Summary

RESULT, FILM = "summary.npz", "film.mp4"
MOST_FRAMES_PER_S = 240  # a file that claims more frames than this in its time is taken to be longer
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_ARRAYS = ("scores", "picks", "shots", "shot_scores", "chosen", "frame_times_s")


def main() -> int:
    task = json.loads(sys.stdin.readline())
    end_with_parent()
    _limit(task["memory_mb"])
    _say(begun=True)
    try:
        began = time.perf_counter()
        {"summarize": _summarize, "cut": _cut}[task["task"]](task)
        _say(stage=task["task"], seconds=time.perf_counter() - began)
        _say(done=True)
    except MemoryError:
        _say(error=f"{task['name']}: takes more memory than allowed here", status=413)
    except (VsumError, OSError) as error:
        if refusal := _refusal_of_disk(error):
            _say(error=f"{task['name']}: the disk of the server refused: {refusal}", status=DiskError.http_status)
        elif isinstance(error, VsumError):
            text = str(error).replace(task["video"], task["name"]).replace(task["work"] + os.sep, "")
            _say(error=text, status=error.http_status)
        else:
            _say_unexpected(task)
    except Exception:
        _say_unexpected(task)
    return 0


def _refusal_of_disk(error: BaseException | None) -> str:
    """What a disk said that is full or cannot be written, where that is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return os.strerror(error.errno)
        error = error.__cause__
    return ""


def _say_unexpected(task: dict[str, Any]) -> None:
    message = f"{task['name']}: internal error; the server's log says more"
    _say(error=message, status=500, trace=traceback.format_exc()[-10_000:])


def load(folder: Path, name: str, model: str) -> Summary:
    """The summary that a task left.

    Raises
    ------
    ValueError
        the file is missing or damaged
    """
    try:
        with np.load(folder / RESULT, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _ARRAYS}
            n_frames, budget_frames = (int(n) for n in file["numbers"])
            fallback, warnings = str(file["fallback"]), tuple(file["warnings"].tolist())
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{RESULT}: {error}") from error
    return Summary(
        **arrays,
        n_frames=n_frames,
        budget_frames=budget_frames,
        fallback=fallback,
        warnings=warnings,
        model=model,
        source=Path(name),
    )


def _summarize(task: dict[str, Any]) -> None:
    from vsum_runtime.runtime.pipeline import Summarizer

    _check_claims(task)
    with Summarizer(task["bundle"], backend=task["backend"], n_threads=task["threads"]) as summarizer:
        summary = summarizer.summarize(task["video"], budget=task["budget"], progress=_reporter())
    numbers = np.array([summary.n_frames, summary.budget_frames])
    arrays: dict[str, Any] = {key: getattr(summary, key) for key in _ARRAYS}
    warnings = np.array(summary.warnings, dtype=np.str_)
    with (Path(task["work"]) / RESULT).open("wb") as file:
        np.savez(file, numbers=numbers, fallback=np.array(summary.fallback), warnings=warnings, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _cut(task: dict[str, Any]) -> None:
    from vsum_runtime.runtime.media.film import write_summary

    with np.load(Path(task["folder"]) / RESULT, allow_pickle=False) as file:
        times = file["frame_times_s"]
    ranges = np.array(task["ranges"], dtype=np.int64)
    write_summary(task["video"], ranges, Path(task["work"]) / FILM, frame_times_s=times, progress=_reporter())


def _check_claims(task: dict[str, Any]) -> None:
    """Refuse by what the file says of itself, before anything is decoded."""
    from vsum_runtime.runtime.media.decode import find_video, open_container

    with open_container(task["video"]) as container:
        stream = find_video(container, task["video"])
        pixels = stream.codec_context.width * stream.codec_context.height
        seconds = max(float(container.duration or 0) / 1e6, stream.frames / MOST_FRAMES_PER_S)
    if pixels > task["max_pixels"]:
        raise TooLargeError(f"video: expected at most {task['max_pixels']} pixels a frame, got {pixels}")
    if seconds > task["max_seconds"]:
        raise TooLargeError(f"video: expected at most {task['max_seconds']:g} s, it claims {seconds:g} s")


def _reporter() -> Callable[[float], None]:
    last = 0.0

    def report(share: float) -> None:
        nonlocal last
        if share >= last + 0.01:
            last = share
            _say(progress=round(share, 3))

    return report


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201  the protocol of this process


def _limit(memory_mb: float) -> None:
    """Stay behind the server's own work, and within the memory allowed (where the system can say so)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        os.nice(5)
        size = int(memory_mb * 1e6)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
