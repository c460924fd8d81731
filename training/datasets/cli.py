"""The vsum-datasets door."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.datasets.preparation import prepare
from vsum_runtime.training.datasets.videos import find_file


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vsum-datasets", description="Data set files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "prepare",
        help="write a copy with shots and user summaries",
        description="Write a copy of a data set that also has change_points and user_summary.",
        epilog="example: vsum-datasets prepare tvsum_efflite0.h5 tvsum_efflite0_kts.h5",
    )
    command.add_argument("source", metavar="IN.h5", type=find_file)
    command.add_argument("target", metavar="OUT.h5", type=Path)
    command.add_argument(
        "--annotations",
        metavar="TSV",
        type=find_file,
        help="ydata-anno.tsv of TVSum: adds user_scores, joined by title (video_name)",
    )
    command.add_argument("--repair", action="store_true", help="mend shots that do not reach the last frame")
    arguments = parser.parse_args(argv)
    try:
        added = prepare(arguments.source, arguments.target, annotations=arguments.annotations, repair=arguments.repair)
    except VsumError as error:
        print(f"vsum-datasets: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print("\n".join([*added, f"wrote {arguments.target}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
