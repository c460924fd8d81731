"""The vsum-train door: arguments and nothing else."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import InputError, MissingPackageError
from vsum_runtime.training.declared import check_arguments
from vsum_runtime.training.models import canonical
from vsum_runtime.training.procedures import check_swept, find_recipe, trainable
from vsum_runtime.training.runs import Run, RunFolder, recipe_folder

if TYPE_CHECKING:
    from vsum_runtime.training.config import TrainConfig
    from vsum_runtime.training.datasets import Dataset, Split, Splits
    from vsum_runtime.training.selection import Epoch


_SETTINGS = (
    "select",
    "feature_norm",
    "epochs",
    "batch_videos",
    "learning_rate",
    "weight_decay",
    "seed",
    "init",
    "texts",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-train",
        description="Train a model on a data set. To resume a run that was stopped, give the same command again.",
        example="vsum-train --model csta --dataset tvsum.h5 --splits tvsum_splits.json --split all --jobs 2",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help=f"one of {', '.join(trainable())}")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the model; may be repeated"
    )
    parser.add_argument("--dataset", required=True, metavar="FILE.h5", help="also looked for in the folder VSUM_DATA")
    parser.add_argument("--splits", metavar="FILE", help="split file; also looked for in the folder VSUM_DATA")
    parser.add_argument(
        "--split",
        nargs="+",
        type=_split,
        default=["1"],
        help="numbers from 1; all; or whole, which trains on every video and takes no split file",
    )
    parser.add_argument(
        "--all-splits", dest="split", action="store_const", const=["all"], help="the same as --split all"
    )
    parser.add_argument(
        "--seeds", type=_numbers(int), metavar="0,1,2", help="one run per seed, in the folders seed0 and so on"
    )
    parser.add_argument(
        "--sweep",
        type=_numbers(float),
        nargs="?",
        const=[],
        metavar="0.5,0.6",
        help="one run per value of ca_sum's sigma or ac_sum_gan's sparsity (default: as published); one is chosen",
    )
    parser.add_argument("--jobs", type=door.whole(1), default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument(
        "--peek-test",
        action="store_true",
        help="log the agreement with the test videos after every epoch; it has no effect on training",
    )
    parser.add_argument("--no-table", action="store_true", help="print no table after several runs")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (default: runs)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming an earlier run")
    parser.add_argument(
        "--select", help="rule that chooses the epoch, such as validation or last (default: the model's)"
    )
    parser.add_argument("--feature-norm", help="auto (default), none or l2")
    parser.add_argument("--epochs", help="default: as published; the same holds for the options below")
    parser.add_argument("--batch-videos", help="videos per optimiser step")
    parser.add_argument("--learning-rate")
    parser.add_argument("--weight-decay")
    parser.add_argument("--seed")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting; may be repeated"
    )
    parser.add_argument("--init", metavar="FILE", help="pretraining checkpoint to start from (sspvs)")
    parser.add_argument("--texts", metavar="FOLDER", help="token ids of the videos' texts (sspvs with text)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=door.whole(1), metavar="N", help="processor threads (default: torch decides)")
    command = sys.argv[1:] if argv is None else argv
    return door.run(
        parser,
        lambda args: _train(args, command),
        argv,
        extra="train",
        interrupted="the same command goes on after the last epoch that was written",
    )


def _train(args: argparse.Namespace, argv: Sequence[str]) -> None:
    if (args.splits is None) != (args.split == ["whole"]):
        raise InputError("give either --splits FILE, or --split whole to learn from every video")
    model = canonical(args.model)
    settings = dict(_pair("--set", text) for text in args.set)
    for name in _SETTINGS:
        if (value := getattr(args, name)) is not None:
            settings["start" if name == "init" else name] = value
    options = dict(_pair("--option", text) for text in args.option)
    check_arguments(model, settings | ({} if args.seeds is None else {"seed": args.seeds[0]}), options)
    if args.sweep is not None:
        check_swept(model)
    if find_spec("torch") is None:
        raise MissingPackageError.of("training", "torch", "train")

    from vsum_runtime.training.datasets import Split, check_numbers, find_file, read_dataset, read_splits

    if args.splits is not None and not find_file(args.splits).is_file():
        raise InputError(
            f"--splits: expected a split file, found no {args.splits}; give its path, or its folder in VSUM_DATA"
        )
    if args.splits is not None:
        check_numbers(find_file(args.splits), args.split)
    with door.stage(f"reading {args.dataset}"):
        dataset = read_dataset(find_file(args.dataset))
        splits = None if args.splits is None else read_splits(find_file(args.splits), dataset)
        chosen = [Split(0, tuple(dataset.videos), ())] if splits is None else splits.select(args.split)

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # a repeatable cuBLAS needs it before CUDA starts
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin steal from runs beside this one
    with door.stage("loading PyTorch"):
        import torch

        from vsum_runtime.training import many
        from vsum_runtime.training.config import changed, published

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"--device: {args.device!r} cannot be used here, torch sees no GPU; use cpu")
    sweep = None if args.sweep is None else many.find_sweep(model)
    values = (args.sweep or sweep.values) if sweep else ()
    by_number = {None if splits is None else split.number: split for split in chosen}
    runs = [
        Run(number, seed, swept)
        for swept in ([(sweep.setting, value) for value in values] if sweep else [None])
        for seed in args.seeds or [None]
        for number in by_number
    ]
    recipe = recipe_folder(args.runs, dataset.name, model)

    if args.jobs > 1 and len(runs) > 1:
        threads = args.threads or max(1, torch.get_num_threads() // args.jobs)
        many.train_side_by_side(argv, runs, jobs=args.jobs, threads=threads)
    else:
        for run in runs:
            own = {} if run.swept is None else {run.swept[0]: run.swept[1]}
            config = changed(published(model), settings | own | ({} if run.seed is None else {"seed": run.seed}))
            title, folder = f"{model} {run.title}", run.folder(recipe)
            _train_one(args, model, dataset, splits, by_number[run.split], title, folder, config, options)
    if len(values) > 1:
        for plain, run in many.choose_swept(model, runs, recipe).items():
            print(f"{plain.folder(recipe).best}  is that of {run.title}", flush=True)
    if not args.no_table and (len(runs) > 1 or args.jobs > 1):
        print(many.table(runs, recipe), flush=True)


def _train_one(
    args: argparse.Namespace,
    model: str,
    dataset: Dataset,
    splits: Splits | None,
    split: Split,
    title: str,
    folder: RunFolder,
    config: TrainConfig,
    options: dict[str, str],
) -> None:
    from vsum_runtime.training.checkpoint import read_metadata
    from vsum_runtime.training.peek import test_watcher
    from vsum_runtime.training.train import train_split

    watch = test_watcher(dataset, split, folder) if args.peek_test else None
    with _progress(title, config.epochs) as report:
        best = train_split(
            model,
            dataset,
            splits,
            split,
            config=config,
            options=options,
            folder=folder.path,
            device=args.device,
            fresh=args.fresh,
            report=report,
            watch=watch,
        )
    metadata = read_metadata(best)
    selection = metadata["selection"]
    value = "" if selection["value"] is None else f" {selection['value']:.4f}"
    chosen = "".join(f", {option} {metadata['options'][option]:g}" for option in find_recipe(model).chosen_options)
    epoch = f"epoch {metadata['epoch']} of {config.epochs}"
    print(f"{best}  {epoch}, chosen by {selection['rule']}{value}{chosen}", flush=True)


def _split(text: str) -> str:
    if text not in ("all", "whole") and not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers from 1, all or whole, got {text!r}")
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:1, got {text!r}")
    return text


def _numbers(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    def numbers(text: str) -> list[float]:
        try:
            values = list(dict.fromkeys(kind(part) for part in text.split(",")))
        except ValueError:
            values = [-1]
        if not all(0 <= value < math.inf for value in values):
            what = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"expected {what}, 0 or more, with commas between, got {text!r}")
        return values

    return numbers


def _pair(argument: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{argument}: expected NAME=VALUE, got {text!r}")
    return name.replace("-", "_"), value


@contextmanager
def _progress(title: str, epochs: int) -> Iterator[Callable[[Epoch], None]]:
    """A bar on a terminal, a line per epoch elsewhere."""

    def text(line: Epoch) -> str:
        tau = "" if line.validation_tau is None else f"  validation tau {line.validation_tau:.4f}"
        name, value = line.headline
        return f"{name} {value:.6f}{tau}  {line.seconds:.1f} s"

    door.say(f"{title}  {epochs} epochs")
    if not sys.stderr.isatty():
        yield lambda line: door.say(f"{title}  epoch {line.epoch}/{epochs}  {text(line)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=epochs, numbers="")
        yield lambda line: progress.update(task, completed=line.epoch, numbers=text(line))


if __name__ == "__main__":
    sys.exit(main())
