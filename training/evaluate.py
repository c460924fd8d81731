"""The vsum-evaluate door: which data set, splits and models to evaluate, by which rules.

Scores of test videos are compared with the people who annotated them by ``training/judge.py``; ``training/report.py``
describes the output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.targets import check_target
from vsum_runtime.training.datasets import find_file, read_dataset, read_splits
from vsum_runtime.training.judge import Rules, default_rules
from vsum_runtime.training.protocols import F_RULES, PROTOCOLS
from vsum_runtime.training.report import report, table, write_report
from vsum_runtime.training.rows import reference_rows
from vsum_runtime.training.trained_rows import row_of_path, rows_of_runs, score_with_bundle, score_with_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-evaluate",
        description="Compare scores with people's: models beside chance, one human, all other humans and a linear fit.",
        example="vsum-evaluate --runs runs --dataset tvsum.h5 --splits splits.json --json results.json",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="evaluate every model, split and seed below the folder",
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help="exported model; {split} in the path stands for the split's number"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="file of vsum-train; {split} as above")
    parser.add_argument("--dataset", required=True, metavar="FILE.h5", help="also looked for in the folder VSUM_DATA")
    parser.add_argument("--splits", required=True, metavar="FILE", help="split file; also looked for in VSUM_DATA")
    parser.add_argument("--split", nargs="+", default=["all"], help="numbers from 1, or all (default)")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="what is ranked against what (default: the first that the labels of the data set allow)",
    )
    parser.add_argument("--f-rule", choices=F_RULES, default="exact", help="how F is counted (default: exact)")
    parser.add_argument("--draws", type=door.whole(1), default=100, metavar="N", help="random scorers (default: 100)")
    parser.add_argument("--json", type=door.local_file, metavar="FILE", help="write every number, video by video")
    parser.add_argument("--overwrite", action="store_true", help="let --json replace a video, a picture or a data set")
    return door.run(parser, _evaluate, argv, extra="features", interrupted="nothing was written")


def _evaluate(args: argparse.Namespace) -> None:
    data_file, split_file = find_file(args.dataset), find_file(args.splits)
    if args.json is not None:
        check_target(args.json, sources=[data_file, split_file, args.checkpoint], overwrite=args.overwrite)
    with door.stage(f"reading {data_file}"):
        dataset = read_dataset(data_file)
        splits = read_splits(split_file, dataset)
        chosen = splits.select(args.split)
        rules = Rules(args.protocol or default_rules(dataset).protocol, args.f_rule)
    rows = []
    for path, score in ((args.bundle, score_with_bundle), (args.checkpoint, score_with_checkpoint)):
        if path:
            with door.stage(f"judging {path}"):
                rows.append(row_of_path(dataset, splits, chosen, rules, path, score))
    rows += rows_of_runs(dataset, splits, chosen, rules, args.runs, report=door.say)
    with door.stage(f"judging people, a linear fit and {args.draws} random scorers"):
        rows += reference_rows(dataset, chosen, rules, draws=args.draws)
        result = report(dataset, splits, chosen, rules, rows)
    if args.json:
        write_report(args.json, result)
    print(table(result))


if __name__ == "__main__":
    sys.exit(main())
