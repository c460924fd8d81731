"""The vsum-summarize door: videos in; of each a summary film, and its JSON and picture where asked for."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.runtime.machine import give_back_large_blocks
from vsum_runtime.runtime.summary import CUTS

if TYPE_CHECKING:
    from vsum_runtime.runtime.pipeline import Summarizer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-summarize",
        description="Keep the important shots of a video, with sound.",
        epilog="examples: "
        "vsum-summarize holiday.mp4 -o summary.mp4 --budget 90s --json summary.json --plot summary.png; "
        "vsum-summarize holidays/ -o summaries/ --jobs 2",
    )
    parser.add_argument("video", type=Path, nargs="+", help="a video file; or several, or a directory of them")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="summary video to write (default: VIDEO.summary.mp4); for several videos a folder (default: summaries)",
    )
    parser.add_argument("--budget", default="15%", help="share (15%%) or seconds (90s) to keep (default: 15%%)")
    parser.add_argument("--json", type=Path, help="write scores, shots and segments")
    parser.add_argument("--plot", type=Path, help="draw the score curve and the shots (png, svg, pdf)")
    parser.add_argument("--bundle", type=Path, help="model to use (default: the one that ships with the package)")
    parser.add_argument("--backend", default="auto", help="auto, or a name that vsum-backends lists (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads (default: all this process may use)")
    parser.add_argument(
        "--cut",
        choices=CUTS,
        default="exact",
        help="smart: exact, encodes only the borders of shots (H.264); copy: no encoding, shots start at key frames",
    )
    parser.add_argument("--jobs", type=int, default=1, help="videos at a time, where there are several (default: 1)")
    parser.add_argument("--report", type=Path, help="several videos: append a JSON line for each that is finished")
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="most that scoring one video may take (default: all memory)",
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps features, so that no video is decoded twice")
    parser.add_argument("--explain", action="store_true", help="say how the work is laid out, on standard error")
    args = parser.parse_args(argv)
    give_back_large_blocks()
    try:
        if len(args.video) == 1 and not args.video[0].is_dir():
            args.video = args.video[0]
            _summarize(args)
        else:
            return _summarize_all(args)
    except VsumError as error:
        print(f"vsum-summarize: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("vsum-summarize: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    return 0


def _summarize(args: argparse.Namespace) -> None:
    out = args.out or args.video.with_suffix(".summary.mp4")
    if out.suffix.lower() not in {".mp4", ".m4v", ".mov", ".mkv"}:
        raise InputError(f"--out: expected a name ending in .mp4, .m4v, .mov or .mkv, got {out.name}")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: expected at least 1, got {args.threads}")
    if out.exists() and args.video.exists() and out.samefile(args.video):
        raise InputError(f"--out: {out} is the video itself; choose another name")
    for path in filter(None, (out, args.json, args.plot)):
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")

    with (
        _open(args) as summarizer,
        _bar("reading") as advance,
    ):
        summary = summarizer.summarize(args.video, budget=args.budget, progress=advance)
    with _bar("writing") as advance:
        summary.write_video(out, cut=args.cut, progress=advance)
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(summary.to_json(), encoding="utf-8")
    if args.plot:
        summary.plot(args.plot)
    if summary.fallback:
        print(f"note: {summary.fallback}", file=sys.stderr)
    if args.cut == "copy":
        print("note: shots start at key frames, so the film is longer than the kept shots", file=sys.stderr)
    print(
        f"{out}  {summary.duration_s:.1f} s of {summary.source_duration_s:.1f} s, "
        f"{len(summary.chosen)} of {len(summary.shots)} shots"
    )


def _open(args: argparse.Namespace) -> Summarizer:
    from vsum_runtime.runtime.machine import cpu_count
    from vsum_runtime.runtime.pipeline import Summarizer

    limit = None if args.memory_limit is None else int(args.memory_limit * 1e9)
    summarizer = Summarizer(
        args.bundle, backend=args.backend, n_threads=args.threads, memory_limit_bytes=limit, cache=args.cache
    )
    if args.explain:
        hour = summarizer.memory_bytes(7200)
        print(
            f"{summarizer.bundle.name} on {summarizer.backend}; decoder up to {cpu_count()} threads, networks "
            f"{args.threads or cpu_count()}, side by side; {args.jobs} videos at a time; scoring an hour at 2 steps a "
            f"second takes {'an unknown amount' if hour is None else f'{hour / 1e6:.0f} MB'} of memory; "
            f"a hundred such hours would be {summarizer.plan([7200] * 100)}",
            file=sys.stderr,
        )
    return summarizer


def _summarize_all(args: argparse.Namespace) -> int:
    if args.json or args.plot:
        raise InputError("--json, --plot: for one video; of several, each has its JSON beside its film")
    if args.jobs < 1:
        raise InputError(f"--jobs: expected at least 1, got {args.jobs}")

    from vsum_runtime.runtime.cli import many as batch
    from vsum_runtime.runtime.summary import parse_budget

    parse_budget(args.budget)
    jobs = batch.plan(args.video, args.out or Path("summaries"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    with (
        _open(args) as summarizer,
        open(args.report or os.devnull, "a", encoding="utf-8") as report,
        _bar("videos") as advance,
    ):

        def finished(outcome: batch.Outcome) -> None:
            report.write(batch.line(outcome))
            report.flush()
            if outcome.error:
                print(f"vsum-summarize: {outcome.error}", file=sys.stderr)
            elif outcome.status == "done":
                print(outcome.film)

        outcomes = batch.run(
            summarizer,
            jobs,
            budget=args.budget,
            cut=args.cut,
            n_at_once=args.jobs,
            finished=finished,
            progress=advance,
        )
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)
    return 1 if counts["failed"] else 0


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float], None] | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


if __name__ == "__main__":
    sys.exit(main())
