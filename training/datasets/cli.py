"""The vsum-datasets door: arguments and nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vsum_runtime.runtime.cli import door
from vsum_runtime.training.datasets.preparation import prepare
from vsum_runtime.training.datasets.videos import find_file


def main(argv: Sequence[str] | None = None) -> int:
    example = "vsum-datasets prepare tvsum_efflite0.h5 tvsum_efflite0_kts.h5"
    parser = door.make_parser("vsum-datasets", description="Data set files.", example=example)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "prepare",
        help="write a copy with shots and user summaries",
        description="Write a copy of a data set that also has change_points and user_summary.",
        epilog=f"example: {example}",
    )
    command.add_argument("source", metavar="IN.h5", type=find_file)
    command.add_argument("target", metavar="OUT.h5", type=door.local_file)
    command.add_argument(
        "--annotations",
        metavar="TSV",
        type=find_file,
        help="ydata-anno.tsv of TVSum: adds user_scores, joined by title (video_name)",
    )
    command.add_argument("--repair", action="store_true", help="repair shots that do not reach the last frame")
    command.add_argument(
        "--overwrite", action="store_true", help="replace even an HDF5 file that this command did not write"
    )
    return door.run(parser, _prepare, argv, extra="features")


def _prepare(args: argparse.Namespace) -> None:
    with door.stage(f"preparing {args.source}"):
        added = prepare(
            args.source, args.target, annotations=args.annotations, repair=args.repair, overwrite=args.overwrite
        )
    print("\n".join([*added, f"wrote {args.target}"]))


if __name__ == "__main__":
    sys.exit(main())
