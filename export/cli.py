"""The vsum-export door: arguments and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime import bundle as bundles
from runtime.errors import InputError, VsumError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-export",
        description="Turn a trained checkpoint into a checked bundle: ONNX with free batch and time axes.",
        epilog="example: vsum-export --model csta --split 1",
    )
    parser.add_argument("--model", help="name of the model whose run is exported")
    parser.add_argument("--split", type=int, default=1, help="number of the split, from 1 (default: 1)")
    parser.add_argument("--dataset", help="name of the data set the run used, where several were trained on")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of vsum-train (default: runs)")
    parser.add_argument("--checkpoint", type=Path, help="export this file instead of a run's best one")
    parser.add_argument(
        "--features", default="auto", help="feature network: efficientnet_lite0, googlenet, none or auto"
    )
    parser.add_argument("--out", type=Path, help="bundle directory (default: bundles/MODEL-splitN)")
    parser.add_argument("--bundle", type=Path, help="with --triton: take this bundle, and export nothing")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="also write the model into this Triton repository")
    args = parser.parse_args(argv)
    if args.bundle is not None and args.triton is None:
        parser.error("--bundle is for --triton DIR")
    if sum(given is not None for given in (args.model, args.checkpoint, args.bundle)) != 1:
        parser.error("give one of --model (with --split), --checkpoint and --bundle")
    try:
        if args.bundle is not None:
            return _to_triton(bundles.read(args.bundle), args.triton)
        checkpoint = args.checkpoint or _best(args.runs, args.model.replace("-", "_"), args.split, args.dataset)
        default_name = args.checkpoint.stem if args.model is None else f"{args.model}-split{args.split}"
        from export.convert import ExportConfig, export

        bundle = export(ExportConfig(checkpoint, args.out or Path("bundles") / default_name, args.features))
        worst = max(bundle.manifest["parity"]["max_abs_difference"].values())
        print(f"{bundle.path}  (ONNX Runtime equals PyTorch to {worst:.1e})")
        return 0 if args.triton is None else _to_triton(bundle, args.triton)
    except VsumError as error:
        print(f"vsum-export: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _to_triton(bundle: bundles.Bundle, repository: Path) -> int:
    from export.triton import write_triton

    print(write_triton(bundle, repository, bundle.path.resolve().name))
    return 0


def _best(runs: Path, model: str, split: int, dataset: str | None) -> Path:
    if split < 1:
        raise InputError(f"--split: splits count from 1, got {split}")
    found = sorted(runs.glob(f"{dataset or '*'}/{model}/split{split}/best.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"--dataset: runs of several data sets match ({', '.join(p.parts[-4] for p in found)}); name one"
        )
    trained = sorted(p.relative_to(runs).as_posix() for p in runs.glob("*/*/split*/best.safetensors"))
    raise InputError(
        f"no finished run {runs}/{dataset or '<dataset>'}/{model}/split{split}; train it with "
        f"vsum-train --model {model} --split {split}, or pass --checkpoint (there are: {', '.join(trained) or 'none'})"
    )


if __name__ == "__main__":
    sys.exit(main())
