"""TensorRT engines, run natively.

An engine is built by ``vsum-export --engine tensorrt`` and found in the engine cache of this user; the runtime builds
none. Each worker owns a context, a stream, device buffers and pinned host buffers of the largest shape, all made when
the engine is opened, so a request allocates nothing. Workers run at the same time: while one computes, another copies.
A request is padded to a bucketed shape and replayed as a CUDA graph of that shape (copy in, compute, copy out).
"""

from __future__ import annotations

import logging
import queue
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends import cuda, engine_cache
from runtime.backends.profiles import Profile, bucket, choose_profile, rows_per_call
from runtime.errors import BackendError, InputError

log = logging.getLogger(__name__)

_N_WORKERS = 2
_N_GRAPHS = 16  # per worker; a graph of these small networks takes some hundred kilobytes
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

    def open(self, graph: Path, *, n_threads: int | None) -> TensorrtSession:
        device = cuda.open_cuda()
        library = tensorrt()
        gpu, capability, driver = device.describe()
        target = engine_cache.Target("tensorrt", library.__version__, gpu, capability, driver)
        rebuild = f"vsum-export --bundle {graph.parent} --engine tensorrt"
        digest = engine_cache.sha256(graph.read_bytes())
        engine = engine_cache.find(engine_cache.default_folder(), digest, target, rebuild)
        return TensorrtSession(library, device, engine)


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

    def __init__(self, library: Any, device: cuda.Cuda, engine: engine_cache.Engine) -> None:
        self._device, self._profiles = device, engine.profiles
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
        each = [self._engine.get_device_memory_size_for_profile_v2(i) for i in range(len(self._profiles))]
        needed, free = _N_WORKERS * max(each), self._device.free_bytes()
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


class _Worker:
    """One context with its stream and its buffers; used by one thread at a time."""

    def __init__(self, library: Any, device: cuda.Cuda, engine: Any, profiles: Sequence[Profile]) -> None:
        self._device, self._profiles = device, profiles
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError("TensorRT could not make a context: out of device memory; use a smaller --max-steps")
        self._stream = device.stream()
        self._profile = 0
        self._addresses: dict[str, int] = {}
        self._pinned: dict[str, NDArray[np.uint8]] = {}
        self._dtypes: dict[str, type[np.generic]] = {}
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            shape = tuple(engine.get_tensor_shape(name))
            is_input = engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = shape
            self._dtypes[name] = _DTYPES[engine.get_tensor_dtype(name).name]
            size = max(prod(_filled(shape, *profile.most)) for profile in profiles)
            n_bytes = size * np.dtype(self._dtypes[name]).itemsize
            self._addresses[name] = device.device_buffer(n_bytes)
            self._pinned[name] = device.pinned_buffer(n_bytes)
            self._context.set_tensor_address(name, self._addresses[name])
        self._graphs: Lru[Any] = Lru(_N_GRAPHS, device.drop_graph)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        self._device.use()
        n_videos, n_steps = inputs["features"].shape[:2]
        profile = choose_profile(self._profiles, n_videos, n_steps)
        assert profile is not None  # rows_per_call chose n_videos
        shape = bucket(self._profiles[profile], n_videos, n_steps)
        for name, axes in self._inputs.items():
            host = self._host(name, _filled(axes, *shape))
            given = inputs[name]
            if name == "lengths":
                host[n_videos:] = 1  # rows that only fill the bucket
            else:
                host[n_videos:] = 0
                host[:n_videos, n_steps:] = 0
            host[tuple(slice(n) for n in given.shape)] = given
        self._compute(profile, shape)
        results = []
        for name, axes in self._outputs.items():
            host = self._host(name, _filled(axes, *shape))
            wanted = _filled(axes, n_videos, n_steps)
            results.append(host[tuple(slice(n) for n in wanted)].astype(np.float32))
        return results

    def _compute(self, profile: int, shape: tuple[int, int]) -> None:
        device, stream = self._device, self._stream

        def shaped() -> Any:
            if profile != self._profile:
                if not self._context.set_optimization_profile_async(profile, stream):
                    raise BackendError(f"TensorRT refused profile {profile}")
                device.synchronize(stream)
                self._profile = profile
            for name, axes in self._inputs.items():
                if not self._context.set_input_shape(name, _filled(axes, *shape)):
                    raise BackendError(f"TensorRT refused the shape {_filled(axes, *shape)} of {name}")

        def work() -> None:
            for name, axes in self._inputs.items():
                device.to_device(self._addresses[name], self._host(name, _filled(axes, *shape)), stream)
            if not self._context.execute_async_v3(stream):
                raise BackendError("TensorRT could not start the computation")
            for name, axes in self._outputs.items():
                device.to_host(self._host(name, _filled(axes, *shape)), self._addresses[name], stream)

        def recorded() -> Any:
            # TensorRT wants one ordinary run after a change of shape before it is recorded.
            shaped()
            work()
            device.synchronize(stream)
            return device.capture(stream, work)

        if device.captures:
            device.launch(self._graphs.get((profile, *shape), recorded), stream)
        else:
            shaped()
            work()
        device.synchronize(stream)

    def _host(self, name: str, shape: Sequence[int]) -> NDArray[Any]:
        """The beginning of a pinned buffer as an array; a view."""
        dtype = np.dtype(self._dtypes[name])
        return self._pinned[name][: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def close(self) -> None:
        self._graphs.clear()
        self._context = None


def _filled(axes: Sequence[int], n_videos: int, n_steps: int) -> tuple[int, ...]:
    """Axes of the engine with the free ones (-1: batch first, then time) filled in.

    >>> _filled((-1, -1, 1280), 8, 320), _filled((-1,), 8, 320)
    ((8, 320, 1280), (8,))
    """
    free = iter((n_videos, n_steps))
    return tuple(next(free) if axis < 0 else axis for axis in axes)
