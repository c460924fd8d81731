"""OpenVINO, on the CPU: an optional library whose matrix products and convolutions are often the faster ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, LifoQueue
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError
from vsum_runtime.runtime.machine import cpu_count
from vsum_runtime.runtime.releases import why_unsupported

_TELEMETRY = "openvino_telemetry"
_first_tensor = Lock()


def library() -> Any:
    """openvino; raises ImportError.

    Importing it sends an event and keeps an id in ``~/intel``, unless its telemetry package cannot be imported. So that
    package is hidden meanwhile, but where it is loaded already or people have said yes or no with `opt_in_out`.
    """
    if _TELEMETRY in sys.modules or (Path.home() / "intel" / _TELEMETRY).exists():
        import openvino

        return openvino
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
    return openvino


class OpenVino:
    wants_half = False

    def why_absent(self) -> str | None:
        try:
            openvino = library()
        except ImportError as error:
            return f'openvino cannot be imported ({error}); pip install "vsum-runtime[openvino]"'
        if (reason := why_unsupported("openvino")) is not None:
            return reason
        if "CPU" not in openvino.Core().available_devices:
            return "this openvino cannot run on the CPU; pip install --force-reinstall openvino"
        return None

    def open(
        self, graph: Path, *, precision: str, n_threads: int | None, side_by_side: bool = False
    ) -> OpenVinoSession:
        return OpenVinoSession(graph, precision, n_threads if n_threads is not None else cpu_count())


class OpenVinoSession:
    """A graph compiled once, for any batch and length."""

    name = "openvino"
    batch_tokens = 1
    n_callers: int
    is_reference, uses_host_memory = False, True

    def __init__(self, graph: Path, precision: str, n_threads: int) -> None:
        openvino = library()
        with _first_tensor:
            # What maps NumPy's types is made by the first tensor, with the interpreter's lock given up on the way. Two
            # threads that make the first one together wait for each other for ever (2026.4).
            _ = openvino.Tensor(np.zeros(1, np.float32)).data
        self.precision = precision
        self.n_callers = n_threads  # they take turns in the network; copies and checks overlap it
        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the processor has it
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": n_threads,
        }
        try:
            self._compiled: Any = openvino.Core().compile_model(str(graph), "CPU", options)
        except Exception as error:
            raise BackendError(f"{self.name} cannot open {graph.name}: {error}") from error
        self._idle: LifoQueue[Any] = LifoQueue()  # a request holds the buffers of one call

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        try:
            try:
                request = self._idle.get_nowait()
            except Empty:
                request = self._compiled.create_infer_request()
            request.infer(dict(inputs), share_inputs=True)
            outputs = [np.array(request.get_output_tensor(i).data) for i in range(len(self._compiled.outputs))]
        except Exception as error:
            raise BackendError(f"{self.name} failed: {error}") from error
        self._idle.put(request)
        return outputs

    def close(self) -> None:
        self._compiled, self._idle = None, LifoQueue()
