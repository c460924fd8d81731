"""What this card is and what it can do at most: the ceilings that other rows are measured against.

A ceiling is measured with PyTorch: a copy inside the card's memory (bytes read and written both count), and square
matrix products of random values.
"""

from __future__ import annotations

import gc
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure.process import ChildError, in_fresh_process

PACKAGES = (
    "torch",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "onnx",
    "numpy",
)
_SIDE = {"cuda": 8192, "cpu": 128}
_COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 20}


def describe(device: str) -> str:
    """Name, memory, compute capability and driver of the card; "cpu" on one."""
    if device == "cpu":
        return "cpu"
    card = torch.cuda.get_device_properties(0)
    return (
        f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute capability {card.major}.{card.minor}, "
        f"driver {_driver()}, CUDA {torch.version.cuda}"
    )


def ceilings(device: str) -> dict[str, float]:
    """Per second: ``copy`` in bytes; ``fp32``, ``tf32`` and ``fp16`` in operations, two per multiplication."""
    rates = {"copy": _copy_rate(device)}
    before = torch.backends.cuda.matmul.allow_tf32
    side = _SIDE[device]
    try:
        for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("fp16", torch.float16)):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            left = torch.randn(side, side, device=device).to(dtype)
            right = torch.randn(side, side, device=device).to(dtype)
            out = torch.empty_like(left)
            rates[precision] = 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=out), device)  # noqa: B023
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return rates


def _copy_rate(device: str) -> float:
    source = torch.rand(_COPIED_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES[device] / _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], Any], device: str) -> float:
    """Median of twenty after three that do not count."""
    seconds = []
    for turn in range(23 if device == "cuda" else 4):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        if turn > 2:
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give back what PyTorch keeps of the card's memory for later."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def used_bytes(device: str) -> int | None:
    """Memory of the card that is taken, by whomever."""
    if device == "cpu":
        return None
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def ask_rtx(timeout_s: float = 120.0) -> dict[str, Any]:
    """Answers of TensorRT-RTX on this card, from a process of its own, which it may end."""
    try:
        return dict(in_fresh_process(probe_rtx, timeout_s=timeout_s).result)
    except subprocess.TimeoutExpired:
        return {"absent": f"no answer within {timeout_s:.0f} s"}
    except ChildError as error:
        return {"absent": str(error)[-300:]}


def probe_rtx() -> dict[str, Any]:
    """Build a small engine for the card at hand, one for compute capability 8.9, and ask about each."""
    from vsum_runtime.export.engine_from_onnx import BuildConfig, build_engine, load_library
    from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
    from vsum_runtime.runtime.backends.tensorrt.profiles import Profile
    from vsum_runtime.runtime.errors import VsumError
    from vsum_runtime.training.models import build

    try:
        library = load_library("tensorrt_rtx")
    except VsumError as error:
        return {"absent": str(error)}
    answers: dict[str, Any] = {"version": library.__version__}
    profiles = (Profile(best=(1, 64), most=(2, 128)),)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "scorer.onnx"
        scorer_onnx(ScorerGraph(build("vasnet", feature_dim=64).eval(), "none"), 64, graph)
        logger = library.Logger(library.Logger.ERROR)
        runtime = library.Runtime(logger)
        for name, capabilities in (("this card", ()), ("8.9", ("8.9",))):
            answer: dict[str, Any] = {}
            answers[f"built for {name}"] = answer
            try:
                plan = build_engine(
                    graph, BuildConfig(profiles=profiles, compute_capabilities=capabilities), library
                ).plan
                answer["built"] = True
                header = plan[: runtime.engine_header_size]
                validity, diagnostics = runtime.get_engine_validity(header)
                answer["validity"], answer["diagnostics"] = str(validity), str(diagnostics)
                answer["deserialized"] = runtime.deserialize_cuda_engine(plan) is not None
            except Exception as error:
                answer["error"] = f"{type(error).__name__}: {error}"[:300]
    return answers
