"""The vsum-export door: arguments and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.errors import InputError, VsumError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-export",
        description="Turn a trained checkpoint into a checked bundle: ONNX with free batch and time axes.",
        epilog="example: vsum-export --model csta --split 1",
    )
    parser.add_argument("--model", help="name of the model whose run is exported")
    parser.add_argument("--split", type=int, default=1, help="number of the split, from 1 (default: 1)")
    parser.add_argument("--seed", type=int, help="seed of the run, where it was trained with --seeds")
    parser.add_argument("--dataset", help="name of the data set the run used, where several were trained on")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of vsum-train (default: runs)")
    parser.add_argument("--checkpoint", type=Path, help="export this file instead of a run's best one")
    parser.add_argument(
        "--features", default="auto", help="feature network: efficientnet_lite0, googlenet, none or auto"
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
    parser.add_argument("--measure-on", type=Path, help="HDF5 features to compare precisions on (default: made up)")
    parser.add_argument("--engine", choices=("tensorrt",), help="also build the engine for the GPU of this machine")
    parser.add_argument("--max-steps", type=int, default=10_000, help="longest video of the engine (default: 10000)")
    parser.add_argument("--workspace-mb", type=int, help="scratch memory of the engine's kernels (default: all)")
    parser.add_argument("--hardware-compatible", action="store_true", help="engine for all GPUs from Ampere on, slower")
    parser.add_argument("--timing-cache", type=Path, help="file that makes later builds quicker")
    parser.add_argument("--out", type=Path, help="bundle directory (default: bundles/MODEL-splitN)")
    parser.add_argument("--bundle", type=Path, help="with --engine or --triton: take this bundle, and export nothing")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="also write the model into this Triton repository")
    args = parser.parse_args(argv)
    if args.bundle is not None and args.engine is None and args.triton is None:
        parser.error("--bundle is for --engine and --triton DIR")
    if [args.model, args.checkpoint, args.bundle].count(None) != 2:
        parser.error("give one of --model (with --split), --checkpoint and --bundle")
    if args.auto_precision and args.precision == "int8":
        parser.error("--auto-precision searches for fp16; leave it out with --precision int8")
    try:
        bundle = _export(args) if args.bundle is None else bundles.read(args.bundle)
        if args.engine is not None:
            print(_build(bundle.path, args))
        if args.triton is not None:
            from vsum_runtime.export.triton import write_triton

            print(write_triton(bundle, args.triton, bundle.path.resolve().name))
    except KeyboardInterrupt:
        print("vsum-export: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    except VsumError as error:
        print(f"vsum-export: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _export(args: argparse.Namespace) -> bundles.Bundle:
    checkpoint = args.checkpoint or _best(args.runs, args.model.replace("-", "_"), args.split, args.dataset, args.seed)
    seed = "" if args.seed is None else f"-seed{args.seed}"
    default_name = args.checkpoint.stem if args.model is None else f"{args.model}-split{args.split}{seed}"
    from vsum_runtime.export.convert import ExportConfig, export
    from vsum_runtime.export.parity import largest_difference

    config = ExportConfig(
        checkpoint,
        args.out or Path("bundles") / default_name,
        precision="fp16" if args.auto_precision else args.precision,
        auto_precision=args.auto_precision,
        measure_on=args.measure_on,
        features=args.features,
    )
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


def _best(runs: Path, model: str, split: int, dataset: str | None, seed: int | None) -> Path:
    if split < 1:
        raise InputError(f"--split: splits count from 1, got {split}")
    run = f"{dataset or '*'}/{model}/{'' if seed is None else f'seed{seed}/'}split{split}"
    found = sorted(runs.glob(f"{run}/best.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.relative_to(runs).parts[0] for path in found)
        raise InputError(f"--dataset: runs of several data sets match ({names}); name one")
    trained = sorted(path.relative_to(runs).as_posix() for path in runs.glob("*/*/**/best.safetensors"))
    which = ", name its --seed," if seed is None else f" --seeds {seed}"
    raise InputError(
        f"no finished run {runs}/{run.replace('*', '<dataset>')}; train it with vsum-train --model {model} "
        f"--split {split}{which} or pass --checkpoint (there are: {', '.join(trained) or 'none'})"
    )


if __name__ == "__main__":
    sys.exit(main())
