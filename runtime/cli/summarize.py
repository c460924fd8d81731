"""The vsum-summarize door: videos in; of each a summary film, and its JSON and picture where asked for."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.chapters import FORMS
from vsum_runtime.runtime.cli import door, shard
from vsum_runtime.runtime.errors import DiskError, InputError
from vsum_runtime.runtime.machine import give_back_large_blocks
from vsum_runtime.runtime.summary import CUTS, parse_budget
from vsum_runtime.runtime.targets import FILM, STILL, check_target

if TYPE_CHECKING:
    from vsum_runtime.runtime.summarizer_process import SummarizerProcess

_FILMS = (".mp4", ".m4v", ".mov", ".mkv")


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-summarize",
        description="Keep the important shots of a video, with sound.",
        example="vsum-summarize holiday.mp4 -o summary.mp4 --budget 90s --json summary.json --plot summary.png; "
        "vsum-summarize holidays/ -o summaries/ --jobs 2",
    )
    parser.add_argument(
        "video", type=door.local_file, nargs="+", help="a video file; or several, or a directory of them"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=door.local_file,
        metavar="FILE",
        help="summary video to write (default: VIDEO.summary.mp4); for several videos a folder (default: summaries)",
    )
    parser.add_argument(
        "--budget",
        default="15%",
        help="share (15%%, 0.15) or time (90s, 2m, 1:30, 1h) to keep of each video (default: 15%%)",
    )
    for name, what in (("--keep", "must be in the summary"), ("--drop", "must not be in it")):
        parser.add_argument(
            name,
            type=_stretch,
            action="append",
            default=[],
            metavar="START-END",
            help=f"a stretch that {what}, such as 0:10-0:20 or 90s-2m; may be repeated",
        )
    parser.add_argument("--json", type=door.local_file, metavar="FILE", help="write scores, shots and segments")
    parser.add_argument(
        "--plot", type=door.local_file, metavar="FILE", help="draw the score curve and the shots (png, svg, pdf)"
    )
    parser.add_argument(
        "--thumbnail", type=door.local_file, metavar="FILE", help="write the best frame (jpg, png, webp)"
    )
    parser.add_argument(
        "--storyboard",
        type=door.local_file,
        metavar="FILE",
        help="write a sheet of small frames (jpg, png, webp), and a WebVTT file for players beside it",
    )
    parser.add_argument(
        "--every", metavar="TIME", help="with --storyboard: a frame so often, such as 10s (default: one of every shot)"
    )
    parser.add_argument(
        "--chapters",
        type=door.local_file,
        metavar="FILE",
        help="write all shots as chapters: .vtt, .ffmetadata, or .txt for YouTube",
    )
    parser.add_argument("--clips", type=Path, metavar="DIR", help="write every kept shot as a video of its own, too")
    parser.add_argument("-r", "--recursive", action="store_true", help="also the directories inside a directory")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace films and pictures that were not written by this command, too; never a video that is read",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="model to use (default: the one that ships with the package)"
    )
    parser.add_argument("--backend", default="auto", help="auto, or a name that vsum-backends lists (default: auto)")
    parser.add_argument(
        "--threads", type=door.whole(1), metavar="N", help="processor threads (default: all this process may use)"
    )
    parser.add_argument(
        "--cut",
        choices=CUTS,
        default="exact",
        help="smart: exact, encodes only the borders of shots (H.264); copy: no encoding, shots start at key frames",
    )
    parser.add_argument(
        "--audio",
        metavar="TRACK",
        help="sound of the film: a track's number from 1, a language such as eng, or all (default: the main one)",
    )
    parser.add_argument(
        "--jobs",
        type=door.whole(1),
        default=1,
        metavar="N",
        help="videos at a time, where there are several (default: 1)",
    )
    parser.add_argument(
        "--report",
        type=door.local_file,
        metavar="FILE",
        help="several videos: append a JSON line for each that is finished",
    )
    parser.add_argument(
        "--memory-limit",
        type=door.positive,
        metavar="GB",
        help="most that scoring one video may take (default: all memory)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that keeps features, so that no video is decoded twice"
    )
    parser.add_argument(
        "--shard",
        type=shard.parse,
        metavar="K/N",
        help="of many videos, the K-th of N shares; auto or auto/N under Slurm, AWS Batch or Kubernetes",
    )
    parser.add_argument("--explain", action="store_true", help="say how the work is laid out, on standard error")
    return door.run(parser, _summarize, argv)


def _summarize(args: argparse.Namespace) -> int:
    parse_budget(args.budget)
    give_back_large_blocks()
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    if len(args.video) == 1 and not args.video[0].is_dir() and args.shard is None:
        return _summarize_one(args, args.video[0])
    return _summarize_all(args)


def _summarize_one(args: argparse.Namespace, video: Path) -> int:
    if args.report:
        raise InputError("--report: is for several videos or a directory; for one, --json writes everything")
    out = args.out or video.with_suffix(".summary.mp4")
    if out.is_dir():
        out /= f"{video.stem}.summary.mp4"
    if out.suffix.lower() not in _FILMS:
        raise InputError(f"--out: expected a name ending in {', '.join(_FILMS)}, or an existing folder, got {out}")
    _check_targets(args, video, out)

    with _open(args) as summarizer:
        with door.stage(f"reading {video.name}") as advance:
            summary = summarizer.summarize(video, budget=args.budget, keep=args.keep, drop=args.drop, progress=advance)
        with door.stage(f"writing {out.name}") as advance:
            summarizer.write_video(
                summary, out, cut=args.cut, audio=args.audio, overwrite=args.overwrite, progress=advance
            )
        if args.clips:
            with door.stage(f"writing {len(summary.chosen)} clips"):
                summary.write_clips(
                    args.clips,
                    cut=args.cut,
                    audio=args.audio,
                    suffix=out.suffix,
                    overwrite=args.overwrite,
                    write=summarizer.write_video,
                )
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(summary.to_json(), encoding="utf-8")
    if args.plot:
        summary.plot(args.plot, overwrite=args.overwrite)
    if args.chapters:
        text = summary.chapters(FORMS[args.chapters.suffix.lower()])
        with replacing(args.chapters) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if args.thumbnail or args.storyboard:
        with door.stage("writing stills"):
            if args.thumbnail:
                summary.write_thumbnail(args.thumbnail, overwrite=args.overwrite)
            if args.storyboard:
                every_s = None if args.every is None else _seconds("--every", args.every)
                summary.write_storyboard(args.storyboard, every_s=every_s, overwrite=args.overwrite)
    if summary.fallback:
        door.note(summary.fallback)
    if args.cut == "copy":
        door.note("shots start at key frames, so the film is longer than the kept shots")
    print(
        f"{out}  {summary.duration_s:.1f} s of {summary.source_duration_s:.1f} s, "
        f"{len(summary.chosen)} of {len(summary.shots)} shots"
    )
    return door.DONE


def _check_targets(args: argparse.Namespace, video: Path, out: Path) -> None:
    """Refuse, before the work begins, what may not be written at its end."""
    written = (out, args.json, args.plot, args.thumbnail, args.storyboard, args.chapters)
    targets = [target.resolve() for target in written if target is not None]
    if args.storyboard is not None:
        targets.append(args.storyboard.with_suffix(".vtt").resolve())
    if len(set(targets)) < len(targets):
        raise InputError(
            "--out, --json, --plot, --thumbnail, --storyboard (and its .vtt), --chapters: expected different files, "
            "got the same one twice"
        )
    check_target(out, sources=[video], mark=FILM, overwrite=args.overwrite)
    if args.json is not None:
        if args.json.suffix.lower() in _FILMS:
            raise InputError(f"--json: expected a name such as {args.json.with_suffix('.json').name}, got {args.json}")
        check_target(args.json, sources=[video], overwrite=args.overwrite)
    if args.plot is not None:
        from vsum_runtime.runtime.plot import checked_target, require_matplotlib

        checked_target(args.plot, video, overwrite=args.overwrite)
        require_matplotlib()

    if args.every is not None:
        _seconds("--every", args.every)
        if args.storyboard is None:
            raise InputError("--every: goes with --storyboard FILE")
    for still in (args.thumbnail, args.storyboard):
        if still is not None:
            from vsum_runtime.runtime.media.stills import suffix_of

            suffix_of(still)
            check_target(still, sources=[video], mark=STILL, overwrite=args.overwrite)
    if args.chapters is not None:
        if args.chapters.suffix.lower() not in FORMS:
            raise InputError(f"--chapters: expected a name ending in {', '.join(FORMS)}, got {args.chapters}")
        check_target(args.chapters, sources=[video], overwrite=args.overwrite)
    if args.clips is not None and args.clips.exists() and not args.clips.is_dir():
        raise InputError(f"--clips: expected a folder, found a file {args.clips}; name another")


def _stretch(text: str) -> tuple[float, float]:
    start, dash, end = text.partition("-")
    try:
        ends = [0.0 if re.fullmatch(r"0+(:00?)*s?", part.strip()) else _seconds("", part) for part in (start, end)]
    except InputError:
        ends = []
    if not dash or not ends or ends[0] >= ends[1]:
        raise argparse.ArgumentTypeError(f"expected START-END such as 0:10-0:20 or 90s-2m, got {text!r}")
    return ends[0], ends[1]


def _seconds(option: str, text: str) -> float:
    number, unit = parse_budget(text)
    if unit != "s":
        raise InputError(f"{option}: expected a time such as 10s or 1m, got {text!r}")
    return number


def _open(args: argparse.Namespace, *, n_processes: int = 1) -> SummarizerProcess:
    from vsum_runtime.runtime.summarizer_process import SummarizerProcess

    options = {
        "bundle": args.bundle,
        "backend": args.backend,
        "n_threads": args.threads,
        "memory_limit_bytes": None if args.memory_limit is None else int(args.memory_limit * 1e9),
        "cache": args.cache,
    }
    if args.explain:
        _explain(options, args.threads, args.jobs)
    return SummarizerProcess(options, n_processes=n_processes)


def _explain(options: dict[str, Any], threads: int | None, jobs: int) -> None:
    from vsum_runtime.runtime.machine import cpu_count
    from vsum_runtime.runtime.pipeline import Summarizer

    with Summarizer(**options) as summarizer:
        hour = summarizer.memory_bytes(7200)
        print(
            f"{summarizer.bundle.name} on {summarizer.backend}; decoder up to {cpu_count()} threads, networks "
            f"{threads or cpu_count()}, side by side; {jobs} videos at a time; scoring an hour at 2 steps a "
            f"second takes {'an unknown amount' if hour is None else f'{hour / 1e6:.0f} MB'} of memory; "
            f"a hundred such hours would be {summarizer.plan([7200] * 100)}",
            file=sys.stderr,
        )


class _Report:
    """Appends lines to a file, each at once; to none where there is no path.

    Raises
    ------
    DiskError
        the file cannot be written
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        with self._refusals():
            self._file = open(path or os.devnull, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__

    def append(self, line: str) -> None:
        with self._refusals():
            self._file.write(line)
            self._file.flush()

    def __enter__(self) -> _Report:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was told when it was
            self._file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"--report: {self._path} cannot be written: {error.strerror or error}; name another. "
                "Films that are finished stay, and are skipped when this is run again"
            ) from error


def _summarize_all(args: argparse.Namespace) -> int:
    if args.json or args.plot:
        raise InputError("--json, --plot: are for one video; of several, each has its JSON beside its film")
    if args.thumbnail or args.storyboard or args.chapters or args.clips:
        raise InputError("--thumbnail, --storyboard, --chapters, --clips: are for one video")
    if args.keep or args.drop:
        raise InputError("--keep, --drop: are for one video")
    out = args.out or Path("summaries")
    if out.suffix.lower() in _FILMS and not out.is_dir():
        raise InputError(f"--out: expected a folder for the films of several videos, got {out}; such as -o summaries")

    from vsum_runtime.runtime.cli import many as batch

    jobs = batch.plan(args.video, out, recursive=args.recursive, overwrite=args.overwrite, shard=args.shard)
    if not jobs:
        door.note(f"none of the videos is in shard {args.shard}")
        return door.DONE
    if args.report is not None:
        check_target(args.report, sources=[job.video for job in jobs])
    with (
        _Report(args.report) as report,
        door.stage(f"summarizing {len(jobs)} videos") as advance,
        _open(args, n_processes=min(args.jobs, len(jobs))) as summarizer,
    ):

        def finished(outcome: batch.Outcome) -> None:
            report.append(batch.line(outcome))
            if outcome.error:
                print(f"vsum-summarize: {outcome.error}", file=sys.stderr)
            elif outcome.status == "done":
                print(outcome.film)

        outcomes = batch.run(
            summarizer,
            jobs,
            budget=args.budget,
            cut=args.cut,
            audio=args.audio,
            n_at_once=args.jobs,
            shard=args.shard,
            finished=finished,
            progress=advance,
        )
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed")}
    door.say(", ".join(f"{count} {status}" for status, count in counts.items()))
    return door.FAILED if counts["failed"] else door.DONE


if __name__ == "__main__":
    sys.exit(main())
