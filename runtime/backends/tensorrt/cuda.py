"""The few calls of CUDA a backend needs, through cuda-python or, where only that is installed, pycuda."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError

INSTALL = "pip install cuda-python"


class Cuda(Protocol):
    """One device. Streams and graphs are opaque handles, addresses are integers."""

    graphs: Graphs | None
    """How CUDA graphs are made; None where the library has none."""

    def describe(self) -> tuple[str, str, int]:
        """Name of the card, compute capability such as "9.0", CUDA version of the driver such as 13000."""
        ...

    def free_bytes(self) -> int: ...
    def use(self) -> None:
        """Make the device current on this thread."""
        ...

    def stream(self) -> int: ...
    def device_buffer(self, n_bytes: int) -> int: ...
    def pinned_buffer(self, n_bytes: int) -> NDArray[np.uint8]: ...
    def to_device(self, address: int, host: NDArray[Any], stream: int) -> None: ...
    def to_host(self, host: NDArray[Any], address: int, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...
    def close(self) -> None:
        """Free every buffer and stream."""
        ...


class Graphs(Protocol):
    """CUDA graphs of one device."""

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """Record what ``work`` puts on the stream; nothing runs."""
        ...

    def launch(self, graph: Any, stream: int) -> None: ...
    def drop_graph(self, graph: Any) -> None: ...


def why_absent() -> str | None:
    """None where CUDA can be reached, else the reason and what to install."""
    try:
        open_cuda().close()
    except BackendError as error:
        return str(error)
    return None


def open_cuda() -> Cuda:
    """The first device, by the first library that is installed.

    Raises
    ------
    BackendError
        no library, no driver or no device
    """
    for opener in (CudaPython, PyCuda):
        try:
            return opener()
        except ImportError:
            continue
    raise BackendError(f"neither cuda-python nor pycuda is installed; {INSTALL}")


class CudaPython:
    """The device by cuda-python."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.graphs: Graphs | None = self
        self._cudart: Any = runtime
        self._device: list[int] = []
        self._host: list[int] = []
        self._streams: list[Any] = []
        try:
            (n_devices,) = self._call("cudaGetDeviceCount")
        except BackendError as error:
            raise BackendError(f"no NVIDIA driver answers ({error})") from error
        if n_devices < 1:
            raise BackendError("the NVIDIA driver lists no device")
        self.use()

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        error, *results = getattr(self._cudart, name)(*arguments)
        if error != self._cudart.cudaError_t.cudaSuccess:
            text = self._cudart.cudaGetErrorString(error)[1].decode()
            hint = "; use shorter videos or smaller batches" if "emory" in text else ""
            raise BackendError(f"{name}: {text}{hint}")
        return tuple(results)

    def describe(self) -> tuple[str, str, int]:
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        (driver,) = self._call("cudaDriverGetVersion")
        return properties.name.decode().rstrip("\0"), f"{properties.major}.{properties.minor}", int(driver)

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo")[0])

    def use(self) -> None:
        self._call("cudaSetDevice", 0)

    def stream(self) -> int:
        (stream,) = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)
        self._streams.append(stream)
        return int(stream)

    def device_buffer(self, n_bytes: int) -> int:
        (address,) = self._call("cudaMalloc", n_bytes)
        self._device.append(address)
        return int(address)

    def pinned_buffer(self, n_bytes: int) -> NDArray[np.uint8]:
        (address,) = self._call("cudaMallocHost", n_bytes)
        self._host.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(int(address)))

    def to_device(self, address: int, host: NDArray[Any], stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: NDArray[Any], address: int, stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            self._cudart.cudaStreamEndCapture(stream)  # leave capture mode, whatever it says
            raise
        (graph,) = self._call("cudaStreamEndCapture", stream)
        (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def drop_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        for name, handles in (
            ("cudaFree", self._device),
            ("cudaFreeHost", self._host),
            ("cudaStreamDestroy", self._streams),
        ):
            while handles:
                self._call(name, handles.pop())


class PyCuda:
    """The device by pycuda, which has no CUDA graphs."""

    graphs: Graphs | None = None

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver: Any = driver
        self._kept: list[Any] = []
        try:
            driver.init()
            self._device = driver.Device(0)
            self._context = self._device.retain_primary_context()
        except driver.Error as error:
            raise BackendError(f"no NVIDIA driver answers ({error})") from error
        self.use()

    def describe(self) -> tuple[str, str, int]:
        major, minor = self._device.compute_capability()
        return self._device.name(), f"{major}.{minor}", int(self._driver.get_driver_version())

    def free_bytes(self) -> int:
        return int(self._driver.mem_get_info()[0])

    def use(self) -> None:
        if self._driver.Context.get_current() is None:
            self._context.push()

    def stream(self) -> int:
        stream = self._driver.Stream()
        self._kept.append(stream)
        return int(stream.handle)

    def device_buffer(self, n_bytes: int) -> int:
        try:
            buffer = self._driver.mem_alloc(n_bytes)
        except self._driver.MemoryError as error:
            raise BackendError(f"out of device memory for {n_bytes} bytes ({error}); use smaller batches") from error
        self._kept.append(buffer)
        return int(buffer)

    def pinned_buffer(self, n_bytes: int) -> NDArray[np.uint8]:
        buffer: NDArray[np.uint8] = self._driver.pagelocked_empty(n_bytes, np.uint8)
        self._kept.append(buffer)
        return buffer

    def to_device(self, address: int, host: NDArray[Any], stream: int) -> None:
        self._driver.memcpy_htod_async(address, host, self._stream(stream))

    def to_host(self, host: NDArray[Any], address: int, stream: int) -> None:
        self._driver.memcpy_dtoh_async(host, address, self._stream(stream))

    def synchronize(self, stream: int) -> None:
        self._stream(stream).synchronize()

    def _stream(self, handle: int) -> Any:
        return next(kept for kept in self._kept if getattr(kept, "handle", None) == handle)

    def close(self) -> None:
        self._kept.clear()
