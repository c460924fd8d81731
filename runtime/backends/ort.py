"""ONNX Runtime, on the CPU and on NVIDIA GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError
from runtime.machine import cpu_count as cpu_count

_BOUNDED_SPINNING = (1, 32)
"""The onnxruntime this was measured with."""


class _Ort:
    name: str
    provider: str
    install: str
    batch_tokens: int
    wants_half: bool
    options: ClassVar[dict[str, str]] = {}
    """Of the provider."""

    def why_absent(self) -> str | None:
        try:
            import onnxruntime
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}); {self.install}"
        if self.provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {self.provider}; {self.install}"
        return self._why_no_device()

    def _why_no_device(self) -> str | None:
        return None

    def open(self, graph: Path, *, precision: str, n_threads: int | None) -> OrtSession:
        return OrtSession(self, graph, precision, n_threads)


class OrtCpu(_Ort):
    name = "ort-cpu"
    provider = "CPUExecutionProvider"
    install = 'pip install "vsum-runtime[cpu]"'
    wants_half = False  # computed in float32 there all the same
    batch_tokens = 1  # batching loses on a CPU: the padding costs and a single video already fills the cores


class OrtCuda(_Ort):
    name = "ort-cuda"
    provider = "CUDAExecutionProvider"
    install = 'pip install "vsum-runtime[gpu]"'
    batch_tokens = 16_384
    wants_half = True
    # TF32, on by default, rounds the factors of float32 products to 10 bits: a float32 graph, or the islands of a
    # half-precision one, would not be what they are called. And the default search for the fastest convolution tries
    # all at every new shape, which here is nearly every request.
    options: ClassVar[dict[str, str]] = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

    def _why_no_device(self) -> str | None:
        import onnxruntime

        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        if not Path("/dev/nvidiactl").exists() and os.name == "posix":
            return "no NVIDIA driver is loaded"
        return None


class OrtSession:
    """A graph opened by onnxruntime."""

    def __init__(self, kind: _Ort, graph: Path, precision: str, n_threads: int | None) -> None:
        self.name, self.precision = kind.name, precision
        self.batch_tokens = kind.batch_tokens
        self._kind, self._graph = kind, graph
        threads = n_threads if n_threads is not None else cpu_count()
        self.n_callers = threads if kind.provider == OrtCpu.provider else 1
        self._counting = Lock()
        self._under_way = 0
        self._one_thread: Any = None
        self._session: Any = self._opened(threads)
        # onnxruntime falls back to the CPU after one warning: compare what runs with what was asked.
        if self._session.get_providers()[0] != kind.provider:
            raise BackendError(f"asked for {kind.provider}, got {self._session.get_providers()}; {kind.install}")

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        with self._entered() as session:
            try:
                outputs: list[NDArray[np.float32]] = session.run(None, dict(inputs))
            except Exception as error:
                raise BackendError(f"{self.name} failed: {error}") from error
        return outputs

    @contextmanager
    def _entered(self) -> Iterator[Any]:
        """The session for one more call: on all threads if it is the only one under way, else on the caller's own.

        Threads that two calls share wait for each other after every operator: two callers then score half to four
        fifths of the videos a second that two of one thread each do. The weights are held twice from then on.
        """
        with self._counting:
            if self._under_way and self.n_callers > 1 and self._one_thread is None:
                self._one_thread = self._opened(1)
            session = self._one_thread if self._under_way and self.n_callers > 1 else self._session
            self._under_way += 1
        try:
            yield session
        finally:
            with self._counting:
                self._under_way -= 1

    def _opened(self, n_threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        # Threads that spin for long steal the cores from whoever decodes; 20 us bridge the gap to the next operator (a
        # recurrent network is then a quarter faster). Older versions know no duration and would spin on.
        can_bound = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= _BOUNDED_SPINNING
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if can_bound else "0")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
        options.enable_cpu_mem_arena = False  # it would keep the peak of the longest video
        try:
            return onnxruntime.InferenceSession(
                str(self._graph),
                options,
                providers=[(self._kind.provider, self._kind.options)],
                # A pass for CPU kernels that crashes the process on half-precision graphs (onnxruntime issue 28392).
                disabled_optimizers=["NchwcTransformer"] if self.precision == "fp16" else None,
            )
        except Exception as error:
            raise BackendError(f"{self.name} cannot open {self._graph.name}: {error}") from error

    def close(self) -> None:
        self._session = self._one_thread = None
