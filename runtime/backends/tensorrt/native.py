"""TensorRT engines, run natively.

An engine is built by ``vsum-export --engine tensorrt`` and found in the engine cache of this user; the runtime builds
none. Each worker owns a context, a stream, device buffers and pinned host buffers of the largest shape, all made when
the engine is opened, so a request allocates nothing. Workers run at the same time: while one computes, another copies.
A request is padded to a bucketed shape and replayed as a CUDA graph of that shape (copy in, compute, copy out).
"""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.backends.tensorrt import cuda, engine_cache
from vsum_runtime.runtime.backends.tensorrt.profiles import Profile, bucket, choose_profile, rows_per_call
from vsum_runtime.runtime.errors import BackendError, InputError

_N_WORKERS = 2
_N_SHAPES = 16  # prepared per worker
_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}

V = TypeVar("V")


class Tensorrt:
    name = "tensorrt"
    batch_tokens = 16_384
    wants_half = True

    def why_absent(self) -> str | None:
        try:
            tensorrt()
        except ImportError as error:
            return f'TensorRT cannot be imported ({error}); pip install "vsum-runtime[tensorrt]"'
        return cuda.why_absent()

    def open(
        self, graph: Path, *, precision: str, n_threads: int | None, side_by_side: bool = False
    ) -> TensorrtSession:
        device, library = cuda.open_cuda(), tensorrt()
        target = target_of(device, library)
        rebuild = f"vsum-export --bundle {graph.parent} --engine tensorrt"
        digest = engine_cache.sha256(graph.read_bytes())
        engine = engine_cache.find(engine_cache.default_folder(), digest, target, rebuild)
        return TensorrtSession(library, device, engine, precision)


def target_of(device: cuda.Cuda, library: Any) -> engine_cache.Target:
    """What an engine must have been built for to run on this device."""
    gpu, capability, driver = device.describe()
    return engine_cache.Target("tensorrt", library.__version__, gpu, capability, driver)


def tensorrt() -> Any:
    """TensorRT by whichever name it is installed; raises ImportError."""
    try:
        return import_module("tensorrt")
    except ImportError:
        return import_module("tensorrt_bindings")  # without the package that owns the plain name


class TensorrtSession:
    """An opened engine."""

    name = "tensorrt"
    batch_tokens = Tensorrt.batch_tokens
    n_callers = _N_WORKERS
    is_reference = uses_host_memory = False

    def __init__(self, library: Any, device: cuda.Cuda, engine: engine_cache.Engine, precision: str) -> None:
        self.precision, self._device, self._profiles = precision, device, engine.profiles
        self._logger = library.Logger(library.Logger.WARNING)  # must outlive all that TensorRT makes
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.plan)
        if self._engine is None:
            raise BackendError("TensorRT refused the engine; build it again with vsum-export --engine tensorrt")
        found = self._engine.num_optimization_profiles
        if found != len(self._profiles):
            raise BackendError(f"the engine has {found} profiles, its record {len(self._profiles)}; build it again")
        self._refuse_if_too_large()
        self._workers: queue.LifoQueue[_Worker] = queue.LifoQueue()
        try:
            for _ in range(_N_WORKERS):
                self._workers.put(_Worker(library, device, self._engine, self._profiles))
        except BaseException:
            device.close()
            raise

    def _refuse_if_too_large(self) -> None:
        needed, free = _N_WORKERS * _memory(self._engine, len(self._profiles)), self._device.free_bytes()
        if needed > free:
            raise BackendError(
                f"out of device memory: {_N_WORKERS} contexts need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free; end other processes, or build with a smaller --max-steps"
            )

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        n_videos, n_steps = inputs["features"].shape[:2]
        rows = rows_per_call(self._profiles, n_steps)
        worker = self._workers.get()
        try:
            parts = [
                worker.run({name: value[first : first + rows] for name, value in inputs.items()})
                for first in range(0, n_videos, rows)
            ]
        except (BackendError, InputError):
            raise
        except Exception as error:
            raise BackendError(f"tensorrt failed: {error}") from error
        finally:
            self._workers.put(worker)
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def close(self) -> None:
        while not self._workers.empty():
            self._workers.get().close()
        self._engine = self._runtime = None
        self._device.close()


class Lru(Generic[V]):
    """The most recently used values, each made once and dropped when others push it out."""

    def __init__(self, size: int, drop: Callable[[V], None]) -> None:
        self._size, self._drop = size, drop
        self._values: OrderedDict[tuple[int, ...], V] = OrderedDict()

    def get(self, name: tuple[int, ...], make: Callable[[], V]) -> V:
        if name in self._values:
            self._values.move_to_end(name)
            return self._values[name]
        value = make()
        while len(self._values) >= self._size:
            self._drop(self._values.popitem(last=False)[1])
        self._values[name] = value
        return value

    def clear(self) -> None:
        while self._values:
            self._drop(self._values.popitem()[1])


@dataclass(frozen=True)
class _Prepared:
    """A context whose shapes never change again, and its CUDA graph where the library of CUDA has them."""

    context: Any
    graph: Any


class _Worker:
    """A stream and buffers of the largest shape; used by one thread at a time.

    NVIDIA advises one context for each captured graph, all of them on one piece of device memory: so here.
    """

    def __init__(self, library: Any, device: cuda.Cuda, engine: Any, profiles: Sequence[Profile]) -> None:
        self._library, self._device, self._engine, self._profiles = library, device, engine, profiles
        self._stream = device.stream()
        self._memory_bytes = _memory(engine, len(profiles))
        self._memory = device.device_buffer(max(self._memory_bytes, 1))
        self._addresses: dict[str, int] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            axes = tuple(engine.get_tensor_shape(name))
            is_input = engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = axes
            self._dtypes[name] = np.dtype(_DTYPES[engine.get_tensor_dtype(name).name])
            size = max(prod(_filled(axes, *profile.most)) for profile in profiles)
            self._addresses[name] = device.device_buffer(size * self._dtypes[name].itemsize)
            self._pinned[name] = device.pinned_buffer(size * self._dtypes[name].itemsize)
        self._prepared: Lru[_Prepared] = Lru(_N_SHAPES, self._forget)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        self._device.use()
        n_videos, n_steps = inputs["features"].shape[:2]
        profile = choose_profile(self._profiles, n_videos, n_steps)
        assert profile is not None  # rows_per_call chose n_videos
        shape = bucket(self._profiles[profile], n_videos, n_steps)
        # First: recording runs once on whatever the buffers hold.
        prepared = self._prepared.get((profile, *shape), lambda: self._prepare(profile, shape))
        for name, axes in self._inputs.items():
            host, given = self._host(name, _filled(axes, *shape)), inputs[name]
            if name == "lengths":
                host[n_videos:] = 1  # rows that only fill the bucket
            else:
                host[n_videos:] = 0
                host[:n_videos, n_steps:] = 0
            host[tuple(slice(n) for n in given.shape)] = given
        if (graphs := self._device.graphs) is None:
            self._enqueue(prepared.context, shape)
        else:
            graphs.launch(prepared.graph, self._stream)
        self._device.synchronize(self._stream)
        results = []
        for name, axes in self._outputs.items():
            wanted = tuple(slice(n) for n in _filled(axes, n_videos, n_steps))
            results.append(self._host(name, _filled(axes, *shape))[wanted].astype(np.float32))
        return results

    def _prepare(self, profile: int, shape: tuple[int, int]) -> _Prepared:
        context = self._engine.create_execution_context(self._library.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise BackendError("TensorRT could not make a context: out of memory; close other sessions")
        context.set_device_memory(self._memory, self._memory_bytes)
        if not context.set_optimization_profile_async(profile, self._stream):
            raise BackendError(f"TensorRT refused profile {profile}")
        self._device.synchronize(self._stream)
        for name, axes in self._inputs.items():
            if not context.set_input_shape(name, _filled(axes, *shape)):
                raise BackendError(f"TensorRT refused the shape {_filled(axes, *shape)} of {name}")
            self._host(name, _filled(axes, *shape))[...] = 1
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        # One ordinary run is due after a change of shape before it may be recorded.
        self._enqueue(context, shape)
        self._device.synchronize(self._stream)
        if (graphs := self._device.graphs) is None:
            return _Prepared(context, None)
        return _Prepared(context, graphs.capture(self._stream, lambda: self._enqueue(context, shape)))

    def _enqueue(self, context: Any, shape: tuple[int, int]) -> None:
        for name, axes in self._inputs.items():
            self._device.to_device(self._addresses[name], self._host(name, _filled(axes, *shape)), self._stream)
        if not context.execute_async_v3(self._stream):
            raise BackendError("TensorRT could not start the computation")
        for name, axes in self._outputs.items():
            self._device.to_host(self._host(name, _filled(axes, *shape)), self._addresses[name], self._stream)

    def _host(self, name: str, shape: Sequence[int]) -> NDArray[Any]:
        """The beginning of a pinned buffer as an array; a view."""
        dtype = self._dtypes[name]
        array: NDArray[Any] = self._pinned[name][: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        return array

    def _forget(self, prepared: _Prepared) -> None:
        if (graphs := self._device.graphs) is not None:
            graphs.drop_graph(prepared.graph)

    def close(self) -> None:
        self._prepared.clear()


def _memory(engine: Any, n_profiles: int) -> int:
    """Bytes of device memory one context needs, whatever its profile."""
    return max(int(engine.get_device_memory_size_for_profile_v2(i)) for i in range(n_profiles))


def _filled(axes: Sequence[int], n_videos: int, n_steps: int) -> tuple[int, ...]:
    """Axes of the engine with the free ones (-1: batch first, then time) filled in.

    >>> _filled((-1, -1, 1280), 8, 320), _filled((-1,), 8, 320)
    ((8, 320, 1280), (8,))
    """
    free = iter((n_videos, n_steps))
    return tuple(next(free) if axis < 0 else axis for axis in axes)
