"""The vsum-features door: videos in, one standard HDF5 file of their features, shots and picks out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.runtime.targets import DATA, check_target


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-features",
        description="Write features, shots and picks of videos into one HDF5 file of the field's standard layout.",
        example="vsum-features holiday.mp4 party.mp4 -o data.h5 --cache features/",
    )
    parser.add_argument("video", type=door.local_file, nargs="+", help="video files, or directories of them")
    parser.add_argument(
        "-o", "--out", type=door.local_file, required=True, metavar="FILE.h5", help="HDF5 file to write"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="also the directories inside a directory")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an HDF5 file that was not written by this command, too"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="take its feature network (default: that of the default model)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that keeps features, so that no video is decoded twice"
    )
    parser.add_argument("--backend", default="auto", help="as of vsum-summarize (default: auto)")
    return door.run(parser, _write, argv, interrupted="with --cache, what was extracted is kept")


def _write(args: argparse.Namespace) -> int:
    if args.out.suffix.lower() not in (".h5", ".hdf5"):
        raise InputError(f"--out: expected a name ending in .h5 or .hdf5, got {args.out}; features are written as HDF5")

    from vsum_runtime.runtime.atomic import sha256
    from vsum_runtime.runtime.cli.many import find_videos
    from vsum_runtime.runtime.feature_files import write_standard
    from vsum_runtime.runtime.shots import find_shots
    from vsum_runtime.runtime.summarizer_process import SummarizerProcess

    videos = find_videos(args.video, recursive=args.recursive)
    check_target(args.out, sources=videos, mark=DATA, overwrite=args.overwrite)
    n_failed = 0
    with SummarizerProcess({"bundle": args.bundle, "backend": args.backend, "cache": args.cache}) as summarizer:

        def extracted() -> Iterator[tuple[Path, str, Any, Any]]:
            nonlocal n_failed
            for number, video in enumerate(videos, start=1):
                try:
                    with door.stage(f"reading {video.name} ({number} of {len(videos)})") as advance:
                        features = summarizer.extract(video, progress=advance)
                        digest = sha256(video)
                except VsumError as error:
                    n_failed += 1
                    print(f"vsum-features: {error}", file=sys.stderr)
                    continue
                yield video, digest, features, find_shots(features.features, features.picks, features.n_frames)
            if n_failed == len(videos):
                raise VsumError("no features could be extracted, so no file is written; see the messages above")

        n_written = len(write_standard(args.out, extracted(), summarizer.recipe()))
    print(f"{args.out}  {n_written} videos, {n_failed} failed")
    return door.FAILED if n_failed else door.DONE


if __name__ == "__main__":
    sys.exit(main())
