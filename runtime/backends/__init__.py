"""The backends, in the order that ``"auto"`` tries them. To add one:

1. write a file beside this one whose class meets ``base.Backend``;
2. add its line to ``BACKENDS``.

The contract tests in ``tests/runtime/test_backends.py`` find it there.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from vsum_runtime.runtime.backends.base import Backend, Session
from vsum_runtime.runtime.errors import BackendError, InputError

BACKENDS: dict[str, str] = {
    "ort-cuda": "vsum_runtime.runtime.backends.ort:OrtCuda",
    "ort-cpu": "vsum_runtime.runtime.backends.ort:OrtCpu",
    # One asks for these: OpenVINO takes long to open, the others need an engine that was built before, or build one.
    "openvino": "vsum_runtime.runtime.backends.openvino:OpenVino",
    "tensorrt": "vsum_runtime.runtime.backends.tensorrt.native:Tensorrt",
    "ort-tensorrt": "vsum_runtime.runtime.backends.tensorrt.providers:OrtTensorrt",
    "ort-tensorrt-rtx": "vsum_runtime.runtime.backends.tensorrt.providers:OrtTensorrtRtx",
}


def backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(['auto', *BACKENDS])}, got {name!r}")
    module, _, attribute = BACKENDS[name].partition(":")
    found: Backend = getattr(import_module(module), attribute)()
    return found


def absences() -> dict[str, str | None]:
    """Backend name -> None where it can run here, else why not and what to install."""
    return {name: backend(name).why_absent() for name in BACKENDS}


def open_session(
    graph: Path,
    name: str = "auto",
    *,
    precision: str = "fp32",
    half: Path | None = None,
    n_threads: int | None = None,
    side_by_side: bool = False,
) -> Session:
    """Open an ONNX graph with the named backend, or with the first that can run here for ``"auto"``.

    ``precision`` is that of the graph: "fp32", or "int8", which only ``ort-cpu`` runs. ``half`` is the same graph in
    half precision: backends that are faster with it take it instead. ``side_by_side``: the caller keeps as many calls
    under way as ``n_callers`` says, with inputs of one shape.

    Raises
    ------
    InputError
        an unknown name
    BackendError
        the backend asked for cannot run here; nothing else is tried in its place
    """
    if precision == "int8":
        if name not in ("auto", "ort-cpu"):
            raise BackendError(f"{graph.name} is quantized to int8 for CPUs and runs on ort-cpu; {name!r} takes fp32")
        name = "ort-cpu"
    tried = list(BACKENDS) if name == "auto" else [name]
    reasons = {}
    for candidate in tried:
        chosen = backend(candidate)
        if (reason := chosen.why_absent()) is None:
            break
        reasons[candidate] = reason
    else:
        if name != "auto":
            raise BackendError(f"backend {name!r} cannot run here: {reasons[name]}")
        listed = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
        raise BackendError(f"no backend can run here ({listed})")
    if half is not None and chosen.wants_half:
        return chosen.open(half, precision="fp16", n_threads=n_threads, side_by_side=side_by_side)
    return chosen.open(graph, precision=precision, n_threads=n_threads, side_by_side=side_by_side)
