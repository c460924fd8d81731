"""The vsum-export door: arguments and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.targets import check_target
from vsum_runtime.training.models import MODELS, canonical
from vsum_runtime.training.runs import Run, find_best


def main(argv: list[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-export",
        description="Turn a trained checkpoint into a checked bundle: ONNX with free batch and time axes.",
        example="vsum-export --model csta --split 1",
    )
    parser.add_argument(
        "--model", metavar="NAME", help=f"whose run is exported; one of {', '.join(MODELS)}, or a recipe of it"
    )
    parser.add_argument(
        "--split", type=door.whole(1), default=1, metavar="N", help="number of the split, from 1 (default: 1)"
    )
    parser.add_argument(
        "--seed", type=door.whole(), metavar="N", help="seed of the run, where it was trained with --seeds"
    )
    parser.add_argument("--dataset", help="name of the data set the run used, where several were trained on")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of vsum-train (default: runs)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="export this file instead of a run's best one")
    parser.add_argument(
        "--features", default="auto", help="feature network: efficientnet_lite0, googlenet, none or auto"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the feature network's published weights (default: the package that ships them, or the internet)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16 adds a graph for GPUs; int8 makes the bundle one for CPUs, if the scores bear it (default: fp32)",
    )
    parser.add_argument(
        "--auto-precision", action="store_true", help="search the parts this model needs in float32; implies fp16"
    )
    parser.add_argument(
        "--measure-on", type=Path, metavar="FILE.h5", help="HDF5 features to compare precisions on (default: made up)"
    )
    parser.add_argument("--engine", choices=("tensorrt",), help="also build the engine for the GPU of this machine")
    parser.add_argument(
        "--max-steps",
        type=door.whole(1),
        default=10_000,
        metavar="T",
        help="longest video of the engine (default: 10000)",
    )
    parser.add_argument(
        "--workspace-mb", type=door.whole(1), metavar="MB", help="scratch memory of the engine's kernels (default: all)"
    )
    parser.add_argument("--hardware-compatible", action="store_true", help="engine for all GPUs from Ampere on, slower")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="file that makes later builds quicker")
    parser.add_argument("--out", type=Path, metavar="DIR", help="bundle directory (default: bundles/MODEL-splitN)")
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="with --engine or --triton: take this bundle, and export nothing"
    )
    parser.add_argument("--triton", type=Path, metavar="DIR", help="also write the model into this Triton repository")
    return door.run(parser, _convert, argv, extra="export")


def _convert(args: argparse.Namespace) -> None:
    if args.bundle is not None and args.engine is None and args.triton is None:
        raise InputError("--bundle: is for --engine and --triton DIR, which take it as it is; add one of them")
    if [args.model, args.checkpoint, args.bundle].count(None) != 2:
        raise InputError("give one of --model (with --split), --checkpoint and --bundle")
    if args.auto_precision and args.precision == "int8":
        raise InputError("--auto-precision: searches for fp16; leave it out with --precision int8")
    if args.engine is not None and args.bundle is None:
        from vsum_runtime.export.engine_from_onnx import load_library

        load_library(args.engine)  # before the export, which takes long: whether it is there at all
    if args.timing_cache is not None:
        check_target(args.timing_cache)
    bundle = _export(args) if args.bundle is None else bundles.read(args.bundle)
    if args.engine is not None:
        print(_build(bundle.path, args))
    if args.triton is not None:
        from vsum_runtime.export.triton import write_triton

        print(write_triton(bundle, args.triton, bundle.path.resolve().name))


def _export(args: argparse.Namespace) -> bundles.Bundle:
    model = None if args.model is None else canonical(args.model)
    if model is not None and not any(f"{model}_".startswith(f"{name}_") for name in MODELS):
        raise InputError(f"--model: expected one of {', '.join(MODELS)}, or a recipe of it, got {args.model!r}")
    checkpoint = args.checkpoint or find_best(args.runs, str(model), Run(args.split, args.seed), dataset=args.dataset)
    if not checkpoint.is_file():
        raise InputError(f"--checkpoint: expected a file of vsum-train, found no {checkpoint}")
    seed = "" if args.seed is None else f"-seed{args.seed}"
    default_name = checkpoint.stem if model is None else f"{model}-split{args.split}{seed}"
    with door.stage("loading PyTorch and ONNX"):
        from vsum_runtime.export.convert import ExportConfig, export
        from vsum_runtime.export.parity import largest_difference

    config = ExportConfig(
        checkpoint,
        args.out or Path("bundles") / default_name,
        precision="fp16" if args.auto_precision else args.precision,
        auto_precision=args.auto_precision,
        measure_on=args.measure_on,
        features=args.features,
        weights=args.weights,
    )
    with door.stage(f"exporting {checkpoint}, and comparing with PyTorch"):
        bundle = export(config)
    print(f"{bundle.path}  (ONNX Runtime equals PyTorch to {largest_difference(bundle.manifest['parity']):.1e})")
    if (quantized := bundle.manifest["parity"].get("int8")) is not None:
        print(f"int8: scores within {quantized['max_abs_difference']:.1e} of float32")
    if (half := bundle.manifest.get("half")) is not None:
        kept = ", ".join(half["islands"]) or "nothing"
        print(f"half precision: scores within {half['parity']['max_abs_difference']:.1e}, float32 kept for {kept}")
    return bundle


def _build(bundle: Path, args: argparse.Namespace) -> str:
    from vsum_runtime.export.engine_from_onnx import BuildConfig, engine_of_bundle, profiles_up_to

    config = BuildConfig(
        profiles=profiles_up_to(args.max_steps),
        workspace_bytes=None if args.workspace_mb is None else args.workspace_mb << 20,
        hardware_compatible=args.hardware_compatible,
        timing_cache=args.timing_cache,
    )

    def progress(phase: str, step: int, n_steps: int) -> None:
        print(f"\r{phase}: {step + 1} of {n_steps}\033[K", end="", file=sys.stderr)

    place = engine_of_bundle(bundle, config, progress=progress if sys.stderr.isatty() else None)
    return f"{place}  (engine of {bundle})"


if __name__ == "__main__":
    sys.exit(main())
