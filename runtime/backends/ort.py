"""ONNX Runtime, on the CPU and on NVIDIA GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.backends.tensorrt import cuda
from vsum_runtime.runtime.errors import BackendError
from vsum_runtime.runtime.machine import cpu_count as cpu_count
from vsum_runtime.runtime.releases import why_unsupported

log = logging.getLogger(__name__)

_BOUNDED_SPINNING = (1, 32)
"""The onnxruntime this was measured with."""
KEPT_INPUT_BYTES = 6 << 20
"""A call with larger inputs, such as 1500 steps of 1024 values, keeps no memory for the next."""


def library() -> Any:
    """onnxruntime; raises ImportError."""
    import onnxruntime

    return onnxruntime


class Ort:
    """What the backends of ONNX Runtime share; each names its provider and how that is opened."""

    name: str
    provider: str
    install: str
    batch_tokens: int
    wants_half: bool
    options: ClassVar[dict[str, str]] = {}
    """Of the provider."""

    def why_absent(self) -> str | None:
        try:
            onnxruntime = library()
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}); {self.install}"
        for package in ("onnxruntime", "onnxruntime-gpu"):
            if (reason := why_unsupported(package)) is not None:
                return reason
        if self.provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {self.provider}; {self.install}"
        return self._why_no_device()

    def _why_no_device(self) -> str | None:
        return None

    def open(self, graph: Path, *, precision: str, n_threads: int | None, side_by_side: bool = False) -> Session:
        return OrtSession(self, graph, precision, n_threads, side_by_side=side_by_side)

    def session(self, graph: Path, settings: Any, options: Mapping[str, str], disabled: list[str] | None) -> Any:
        """An InferenceSession on the provider; raises whatever onnxruntime does."""
        providers = [(self.provider, {**self.options, **options})]
        return library().InferenceSession(str(graph), settings, providers=providers, disabled_optimizers=disabled)


class OrtCpu(Ort):
    name = "ort-cpu"
    provider = "CPUExecutionProvider"
    install = 'pip install "vsum-runtime[cpu]"'
    wants_half = False  # computed in float32 there all the same
    batch_tokens = 1  # batching loses on a CPU: the padding costs and a single video already fills the cores


class OrtCuda(Ort):
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
        if hasattr(library(), "preload_dlls"):
            library().preload_dlls()
        return why_no_driver()


def why_no_driver() -> str | None:
    """A cheap look: what needs the driver says more."""
    if not Path("/dev/nvidiactl").exists() and os.name == "posix":
        return "no NVIDIA driver is loaded"
    return None


class OrtSession:
    """A graph opened by onnxruntime."""

    def __init__(
        self,
        kind: Ort,
        graph: Path,
        precision: str,
        n_threads: int | None,
        options: Mapping[str, str] | None = None,
        *,
        side_by_side: bool = False,
    ) -> None:
        self.name, self.precision = kind.name, precision
        self.batch_tokens = kind.batch_tokens
        self._kind, self._graph, self._options = kind, graph, options or {}
        threads = n_threads if n_threads is not None else cpu_count()
        on_cpu = kind.provider == OrtCpu.provider
        self.is_reference = self.uses_host_memory = on_cpu
        self.n_callers = threads if on_cpu else 1
        # Calls side by side take turns in one session of one thread: a third less processor time than two threads that
        # wait for each other, and with it half of the pictures a second more.
        self._n_threads = 1 if side_by_side and on_cpu else threads
        self._counting = Lock()
        self._under_way = 0
        self._untried = True
        first = self._opened(self._n_threads, keeps=True)
        self._sessions: dict[tuple[int, bool], Any] = {(self._n_threads, True): first}
        # onnxruntime falls back to the CPU after one warning: compare what runs with what was asked.
        if first.get_providers()[0] != kind.provider:
            raise BackendError(f"asked for {kind.provider}, got {first.get_providers()}; {kind.install}")
        self._lane = None if on_cpu else Lane(first, pinned_memory())

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        small = sum(value.nbytes for value in inputs.values()) <= KEPT_INPUT_BYTES
        with self._entered(keeps=small or self._lane is not None) as session:
            try:
                outputs: list[NDArray[np.float32]]
                outputs = session.run(None, dict(inputs)) if self._lane is None else self._lane.run(inputs)
            except BackendError:
                raise
            except Exception as error:
                raise BackendError(f"{self.name} failed: {error}") from error
        return outputs

    @contextmanager
    def _entered(self, *, keeps: bool = True) -> Iterator[Any]:
        """The session for one more call: on all threads if it is the only one under way, else on the caller's own.

        Threads that two calls share wait for each other after every operator: two callers then score half to four
        fifths of the videos a second that two of one thread each do. Calls that may keep memory for the next have
        sessions of their own. Each session holds the weights.
        """
        with self._counting:
            key = (1 if self._under_way and self.n_callers > 1 else self._n_threads, keeps)
            if key not in self._sessions:
                if self._untried:
                    self._sessions.clear()
                self._sessions[key] = self._opened(*key)
            session = self._sessions[key]
            self._untried = False
            self._under_way += 1
        try:
            yield session
        finally:
            with self._counting:
                self._under_way -= 1

    def _opened(self, n_threads: int, keeps: bool) -> Any:
        settings = library().SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = n_threads
        settings.inter_op_num_threads = 1
        # Threads that spin for long steal the cores from whoever decodes; 20 us bridge the gap to the next operator (a
        # recurrent network is then a quarter faster). Older versions know no duration and would spin on.
        can_bound = tuple(map(int, library().__version__.split(".")[:2])) >= _BOUNDED_SPINNING
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if can_bound else "0")
        settings.add_session_config_entry("session.intra_op.spin_duration_us", "20")
        # Fresh pages for every operator take up to a quarter of the time of 1000 steps. But an arena grows by doubling,
        # and what it has it keeps. Memory patterns gain no time and take half as much again when a shape comes back.
        settings.enable_cpu_mem_arena, settings.enable_mem_pattern = keeps, False
        # A pass for CPU kernels that crashes the process on half-precision graphs (onnxruntime issue 28392).
        disabled = ["NchwcTransformer"] if self.precision == "fp16" else None
        try:
            return self._kind.session(self._graph, settings, self._options, disabled)
        except Exception as error:
            raise BackendError(f"{self.name} cannot open {self._graph.name}: {error}") from error

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()
        self._sessions.clear()
        self._lane = None


class Memory(Protocol):
    """Where buffers on the host come from."""

    def pinned_buffer(self, n_bytes: int) -> NDArray[np.uint8]: ...
    def close(self) -> None: ...


class OrdinaryMemory:
    """Where no library of CUDA is installed that could pin it; the driver then copies once more."""

    def pinned_buffer(self, n_bytes: int) -> NDArray[np.uint8]:
        return np.empty(n_bytes, dtype=np.uint8)

    def close(self) -> None:
        pass


def pinned_memory() -> Memory:
    """Memory that the card reads and writes by itself, where cuda-python or pycuda is there to give it."""
    try:
        return cuda.open_cuda()
    except BackendError as error:
        log.debug("host buffers are not pinned: %s", error)
        return OrdinaryMemory()


class Lane:
    """Bound host buffers that are used again, so that a request allocates none; one request at a time.

    A buffer grows to the largest request so far. The provider copies from it to the card and back.
    """

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._memory = session, memory
        self._binding = session.io_binding()
        self._buffers: dict[str, NDArray[np.uint8]] = {}
        self._turn = Lock()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        with self._turn:
            sizes: dict[str, int] = {}
            for value in self._session.get_inputs():
                given = inputs[value.name]
                sizes |= {axis: size for axis, size in zip(value.shape, given.shape, strict=True) if axis != size}
                host = self._host(value.name, given.shape, given.dtype)
                host[...] = given
                self._binding.bind_input(value.name, "cpu", 0, given.dtype, list(given.shape), host.ctypes.data)
            results = []
            for value in self._session.get_outputs():
                host = self._host(value.name, [sizes.get(axis, axis) for axis in value.shape], np.dtype(np.float32))
                self._binding.bind_output(value.name, "cpu", 0, np.float32, list(host.shape), host.ctypes.data)
                results.append(host)
            self._binding.synchronize_inputs()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            return [host.copy() for host in results]

    def _host(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The beginning of a buffer as an array; a view."""
        n_bytes = prod(shape) * dtype.itemsize
        if name not in self._buffers or len(self._buffers[name]) < n_bytes:
            self._buffers[name] = self._memory.pinned_buffer(1 << (n_bytes - 1).bit_length())
        array: NDArray[Any] = self._buffers[name][:n_bytes].view(dtype).reshape(tuple(shape))
        return array

    def close(self) -> None:
        with self._turn:
            self._buffers.clear()
            self._binding = None
            self._memory.close()
