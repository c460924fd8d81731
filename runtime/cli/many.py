"""Many videos in, for each a film and its record: several at a time, resumable, one outcome for each.

The record (JSON) of a video is written last. It holds the checksums of the video and of the film, and the settings;
a video whose record says what this run would do, and whose film is the one recorded, is finished and skipped. Files
appear whole or not at all, so a run may be killed at any moment and started again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

from vsum_runtime.runtime.atomic import remove_leftovers, replacing, sha256
from vsum_runtime.runtime.bundle import MANIFEST
from vsum_runtime.runtime.cli.shard import Shard
from vsum_runtime.runtime.errors import InputError, VideoError, VsumError
from vsum_runtime.runtime.summarizer_process import SummarizerProcess
from vsum_runtime.runtime.summary import Budget
from vsum_runtime.runtime.targets import FILM, check_target

_log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)
"""What counts as a video in a directory; a file named by itself may end in anything."""
_OWN = ".summary"


@dataclass(frozen=True)
class Job:
    """One video, and where its results go."""

    video: Path
    film: Path
    record: Path


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video: str
    status: str
    """"done", "skipped" (finished by an earlier run) or "failed"."""
    film: str | None
    error: str | None
    took_s: float


class _Stopped(Exception):
    """Raised inside the work when the run is interrupted."""


def find_videos(paths: Sequence[Path], *, recursive: bool = False) -> list[Path]:
    """The videos that are named, and those inside the directories that are named, in order, each once.

    Parameters
    ----------
    recursive
        whether directories inside the directories are looked into, but for hidden ones and links

    Raises
    ------
    InputError
        a directory without videos
    """
    return list(_videos(paths, recursive=recursive))


def _videos(paths: Sequence[Path], *, recursive: bool) -> dict[Path, Path]:
    """Video -> what its results are named after: its own name, below a directory with those of the folders between."""
    videos: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            videos.setdefault(path, Path(path.name))
            continue
        inside = sorted(_videos_below(path, recursive=recursive))
        if not inside:
            cure = "" if recursive else "; --recursive looks into the directories inside it, too"
            raise InputError(f"{path}: expected videos in this directory, found none{cure}")
        for video in inside:
            videos.setdefault(video, Path("_".join(video.relative_to(path).parts)))
    return videos


def _videos_below(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for file in (Path(parent) / name for name in names):
            own = file.stem.endswith(_OWN) or file.name.startswith(".")
            if file.suffix.lower() in SUFFIXES and not own and file.is_file():
                yield file


def plan(
    paths: Sequence[Path],
    folder: Path,
    *,
    recursive: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
) -> list[Job]:
    """What is to be done for the videos that `find_videos` finds; results are named after the videos.

    Parameters
    ----------
    shard
        the share of the videos to take; None: all

    Raises
    ------
    InputError
        a directory without videos, two videos of one name, a result that may not be written (`targets`)
    """
    videos = _videos(paths, recursive=recursive)
    stems = Counter(name.stem for name in videos.values())
    names = [name.stem if stems[name.stem] == 1 else name.name for name in videos.values()]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"two of the videos are called {twice}; summarize them into different folders")
    jobs = [
        Job(video, folder / f"{name}{_OWN}.mp4", folder / f"{name}{_OWN}.json")
        for (video, own), name in zip(videos.items(), names, strict=True)
        if shard is None or shard.holds(str(own))
    ]
    if folder.is_dir():
        sources = {_identity(video): video for video in videos}
        for job in jobs:
            for target, mark in ((job.film, FILM), (job.record, None)):
                if target.exists():
                    read = sources.get(_identity(target))
                    check_target(target, sources=[read], mark=mark, overwrite=overwrite)
    return jobs


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever links lead to it."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def run(
    summarizer: SummarizerProcess,
    jobs: Sequence[Job],
    *,
    budget: Budget = 0.15,
    cut: str = "exact",
    audio: str | None = None,
    n_at_once: int = 1,
    shard: Shard | None = None,
    finished: Callable[[Outcome], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Outcome]:
    """Summarize videos; one that fails is an outcome, and the others go on.

    Parameters
    ----------
    summarizer
        opened in as many processes; a video that makes one die is a failed one
    jobs : list of Job
        all into one folder, which is made if it is absent
    n_at_once : int
        videos at a time; they share the processors
    shard
        the share that `jobs` are; others may be worked on in the same folder at the same time
    finished : callable
        told every outcome as it comes, in the calling thread
    progress : callable
        told the share of the videos that are finished, 0..1

    Returns
    -------
    list of Outcome
        in the order of `jobs`

    Raises
    ------
    InputError
        another run, or another process of the same shard, writes to the same folder
    KeyboardInterrupt
        passed on, after every video under way has been abandoned and cleaned up
    """
    settings = {
        "model": sha256(summarizer.bundle / MANIFEST),
        "budget": str(budget),
        "cut": cut,
    }
    if audio is not None:
        settings["audio"] = audio
    stop = Event()
    outcomes: dict[int, Outcome] = {}
    with _sole_writer(jobs[0].film.parent, shard), ThreadPoolExecutor(n_at_once, "vsum-video") as pool:
        waiting = {pool.submit(_finish, summarizer, job, settings, stop): i for i, job in enumerate(jobs)}
        try:
            while waiting:
                for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    outcome = outcomes[waiting.pop(future)] = future.result()
                    if finished is not None:
                        finished(outcome)
                    if progress is not None:
                        progress(len(outcomes) / len(jobs))
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [outcomes[i] for i in range(len(jobs))]


def _finish(summarizer: SummarizerProcess, job: Job, settings: dict[str, str], stop: Event) -> Outcome:
    began = time.perf_counter()
    status, error = "failed", None
    try:
        status = "done" if _summarize(summarizer, job, settings, stop) else "skipped"
    except VsumError as failure:
        error = str(failure)
    except _Stopped:
        error = "interrupted"
    except Exception as failure:  # whatever a strange file brings up must not end the other videos
        error = f"{type(failure).__name__}: {failure}"
    film = None if error else str(job.film)
    return Outcome(str(job.video), status, film, error, round(time.perf_counter() - began, 3))


def _summarize(summarizer: SummarizerProcess, job: Job, settings: dict[str, str], stop: Event) -> bool:
    def go_on(_: float) -> None:
        if stop.is_set():
            raise _Stopped

    go_on(0)
    if not job.video.is_file():
        raise VideoError(f"{job.video}: expected a video file, found {'a directory' if job.video.is_dir() else 'none'}")
    try:
        before = job.video.stat()
        run = {**settings, "source_sha256": sha256(job.video)}
    except OSError as error:
        raise VideoError(f"{job.video}: expected a video file, it cannot be read: {error.strerror}") from error
    if _is_finished(job, run):
        return False
    for target in (job.film, job.record):  # what a killed run left; this run is the only one in the folder
        remove_leftovers(target)
    summary = summarizer.summarize(job.video, budget=settings["budget"], progress=go_on)
    options = {"cut": settings["cut"], "audio": settings.get("audio")}
    summarizer.write_video(summary, job.film, overwrite=True, progress=go_on, **options)  # `plan` has looked
    after = job.video.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise VideoError(f"{job.video}: the file changed while it was read; run again when it is complete")
    record = {**summary.to_dict(), "run": {**run, "film_sha256": sha256(job.film)}}
    with replacing(job.record) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return True


def _is_finished(job: Job, run: dict[str, str]) -> bool:
    try:
        recorded: Any = json.loads(job.record.read_text(encoding="utf-8"))["run"]
        return bool(recorded == {**run, "film_sha256": sha256(job.film)})
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _sole_writer(folder: Path, shard: Shard | None = None) -> Iterator[None]:
    """Hold the folder, or this shard's part of it, so that two runs never write the same files.

    A process that dies lets go. Shards hold the folder together, and each a file of its own in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for the summaries: {error.strerror}; name another") from error
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with ExitStack() as held:
        _hold(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH, folder, held)
        if shard is not None:
            own = folder / f".shard-{shard}.lock"
            _hold(os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), fcntl.LOCK_EX, own, held)
        yield


def _hold(descriptor: int, how: int, path: Path, held: ExitStack) -> None:
    import fcntl

    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: another run writes there; wait for it, or name another folder") from error
    except OSError as error:  # NFS locks no directory, some file systems lock nothing
        _log.warning("%s: cannot be locked (%s); see that no other run writes there", path, error.strerror)


def line(outcome: Outcome) -> str:
    """One line of a JSONL report."""
    return json.dumps(asdict(outcome), ensure_ascii=True) + "\n"
