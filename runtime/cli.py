"""The vsum-summarize door: a video in, a summary film, its JSON and its picture out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.atomic import replacing
from runtime.errors import InputError, VsumError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-summarize",
        description="Keep the important shots of a video, with sound.",
        epilog="example: vsum-summarize holiday.mp4 -o summary.mp4 --budget 90s --json summary.json --plot summary.png",
    )
    parser.add_argument("video", type=Path, help="any video file")
    parser.add_argument("-o", "--out", type=Path, help="summary video to write (default: VIDEO.summary.mp4)")
    parser.add_argument("--budget", default="15%", help="share (15%%) or seconds (90s) to keep (default: 15%%)")
    parser.add_argument("--json", type=Path, help="write scores, shots and segments")
    parser.add_argument("--plot", type=Path, help="draw the score curve and the shots (png, svg, pdf)")
    parser.add_argument("--bundle", type=Path, help="model to use (default: the one that ships with the package)")
    parser.add_argument("--backend", default="auto", help="auto, or a name that vsum-backends lists (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads (default: all this process may use)")
    args = parser.parse_args(argv)
    try:
        _summarize(args)
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

    from runtime.pipeline import Summarizer

    with (
        Summarizer(args.bundle, backend=args.backend, n_threads=args.threads) as summarizer,
        _bar("reading") as advance,
    ):
        summary = summarizer.summarize(args.video, budget=args.budget, progress=advance)
    with _bar("writing") as advance:
        summary.write_video(out, progress=advance)
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(summary.to_json(), encoding="utf-8")
    if args.plot:
        summary.plot(args.plot)
    if summary.fallback:
        print(f"note: {summary.fallback}", file=sys.stderr)
    print(
        f"{out}  {summary.duration_s:.1f} s of {summary.source_duration_s:.1f} s, "
        f"{len(summary.chosen)} of {len(summary.shots)} shots"
    )


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
