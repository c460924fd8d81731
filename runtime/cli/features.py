"""The vsum-features door: videos in, one standard HDF5 file of their features, shots and picks out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.errors import InputError, VsumError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-features",
        description="Write features, shots and picks of videos into one HDF5 file of the field's standard layout.",
        epilog="example: vsum-features holiday.mp4 party.mp4 -o data.h5 --cache features/",
    )
    parser.add_argument("video", type=Path, nargs="+", help="video files, or directories of them")
    parser.add_argument("-o", "--out", type=Path, required=True, help="HDF5 file to write")
    parser.add_argument("--bundle", type=Path, help="take its feature network (default: that of the default model)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features, so that no video is decoded twice")
    parser.add_argument("--backend", default="auto", help="as of vsum-summarize (default: auto)")
    args = parser.parse_args(argv)
    failures: list[str] = []
    try:
        n_written = _write(args, failures)
    except VsumError as error:
        print(f"vsum-features: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("vsum-features: interrupted; with --cache, what was extracted is kept", file=sys.stderr)
        return 130
    print(f"{args.out}  {n_written} videos, {len(failures)} failed")
    return 1 if failures else 0


def _write(args: argparse.Namespace, failures: list[str]) -> int:
    from vsum_runtime.runtime.atomic import sha256
    from vsum_runtime.runtime.cli.many import find_videos
    from vsum_runtime.runtime.feature_files import write_standard
    from vsum_runtime.runtime.pipeline import Summarizer
    from vsum_runtime.runtime.shots import find_shots

    videos = find_videos(args.video)
    with Summarizer(args.bundle, backend=args.backend, cache=args.cache) as summarizer:

        def extracted() -> Iterator[tuple[Path, str, Any, Any]]:
            n_good = 0
            for video in videos:
                try:
                    found = summarizer.extract(video)
                    digest = sha256(video)
                except VsumError as error:
                    failures.append(str(error))
                    print(f"vsum-features: {error}", file=sys.stderr)
                    continue
                n_good += 1
                yield video, digest, found, find_shots(found.features, found.picks, found.n_frames)
            if n_good == 0:
                raise InputError("no features could be extracted, so no file is written; see the messages above")

        return len(write_standard(args.out, extracted(), summarizer.recipe))


if __name__ == "__main__":
    sys.exit(main())
