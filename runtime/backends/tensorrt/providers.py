"""ONNX Runtime's execution providers of TensorRT and TensorRT-RTX, which build their engines themselves.

An engine is built when a shape of its profile is first asked for, and kept in this user's engine cache. The precision
is that of the graph. What the provider does not take runs on the CUDA provider, or on the CPU where there is none.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.backends.ort import Ort, OrtCuda, OrtSession, library, why_no_driver
from vsum_runtime.runtime.backends.tensorrt import engine_cache
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES, Profile, choose_profile, rows_per_call

_PLUG_IN = "onnxruntime_ep_nv_tensorrt_rtx"


class OrtTensorrt(Ort):
    name = "ort-tensorrt"
    provider = "TensorrtExecutionProvider"
    install = 'pip install "vsum-runtime[ort-tensorrt]"'
    batch_tokens = 16_384
    wants_half = True
    shape_options = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")

    def _why_no_device(self) -> str | None:
        if (reason := why_no_driver()) is not None:
            return reason
        # onnxruntime links one major version of the library, and where it is missing runs on another provider.
        for load in (lambda: None, lambda: import_module("tensorrt")):  # the package loads its own libraries
            try:
                load()
                ctypes.CDLL("libnvinfer.so.10")
                return None
            except (ImportError, OSError) as error:
                missing = error
        return f"the library of TensorRT 10 cannot be loaded ({missing}); {self.install}"

    def open(self, graph: Path, *, precision: str, n_threads: int | None, side_by_side: bool = False) -> Session:
        place = engine_cache.default_folder() / self.name
        digest = engine_cache.sha256(graph.read_bytes())

        def open_profile(profile: Profile, inputs: Mapping[str, NDArray[Any]]) -> Session:
            shapes = dict(zip(self.shape_options, profile_shapes(profile, inputs), strict=True))
            with engine_cache.sealed(place, digest) as folder:
                return OrtSession(self, graph, precision, n_threads, {**shapes, **self.cache_options(folder)})

        return ByProfile(self, precision, open_profile)

    def cache_options(self, folder: Path) -> dict[str, str]:
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }

    def session(self, graph: Path, settings: Any, options: Mapping[str, str], disabled: list[str] | None) -> Any:
        providers = [(self.provider, dict(options)), (OrtCuda.provider, OrtCuda.options)]
        return library().InferenceSession(str(graph), settings, providers=providers, disabled_optimizers=disabled)


class OrtTensorrtRtx(OrtTensorrt):
    name = "ort-tensorrt-rtx"
    provider = "NvTensorRTRTXExecutionProvider"
    install = 'pip install "vsum-runtime[ort-tensorrt-rtx]"'
    shape_options = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")

    def why_absent(self) -> str | None:
        try:
            onnxruntime = library()
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}); {self.install}"
        if not hasattr(onnxruntime, "get_ep_devices"):
            return f"onnxruntime {onnxruntime.__version__} takes no plug-ins; {self.install}"
        if importlib.util.find_spec(_PLUG_IN) is None:
            return f"the plug-in {_PLUG_IN} is not installed; {self.install}"
        if (reason := why_no_driver()) is not None:
            return reason
        try:
            devices = self._devices()
        except Exception as error:
            return f"the plug-in cannot be loaded, which needs an NVIDIA driver: {error}"
        return (
            None if devices else "the plug-in takes no device of this driver (compute capability 8.6, 8.9 or from 12.0)"
        )

    def _devices(self) -> list[Any]:
        """Devices the plug-in offers; it is registered at most once a process."""

        def offered() -> list[Any]:
            return [device for device in library().get_ep_devices() if device.ep_name == self.provider]

        if not offered():
            library().register_execution_provider_library(self.provider, import_module(_PLUG_IN).get_library_path())
        return offered()

    def cache_options(self, folder: Path) -> dict[str, str]:
        return {"nv_runtime_cache_path": str(folder)}

    def session(self, graph: Path, settings: Any, options: Mapping[str, str], disabled: list[str] | None) -> Any:
        settings.add_provider_for_devices(self._devices()[:1], dict(options))
        return library().InferenceSession(str(graph), settings, disabled_optimizers=disabled)


class ByProfile:
    """One session for each profile, opened at its first request: none reserves memory for shapes nobody asks for.

    Within its profile a provider never builds again, which it would at every longer request that has none.
    """

    def __init__(
        self, kind: Ort, precision: str, open_profile: Callable[[Profile, Mapping[str, NDArray[Any]]], Session]
    ) -> None:
        self.name, self.precision = kind.name, precision
        self.batch_tokens, self.n_callers = kind.batch_tokens, 1
        self.is_reference = self.uses_host_memory = False
        self._open_profile = open_profile
        self._opened: dict[int, Session] = {}
        self._opening = Lock()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        n_videos, n_steps = inputs["features"].shape[:2]
        rows = rows_per_call(PROFILES, n_steps)
        parts = []
        for first in range(0, n_videos, rows):
            part = {name: value[first : first + rows] for name, value in inputs.items()}
            parts.append(self._session(part).run(part))
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _session(self, inputs: Mapping[str, NDArray[Any]]) -> Session:
        index = choose_profile(PROFILES, *inputs["features"].shape[:2])
        assert index is not None  # rows_per_call chose the batch
        with self._opening:
            if index not in self._opened:
                self._opened[index] = self._open_profile(PROFILES[index], inputs)
            return self._opened[index]

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


def profile_shapes(profile: Profile, inputs: Mapping[str, NDArray[Any]]) -> tuple[str, str, str]:
    """Least, best and largest shape of every input, as the providers read them.

    >>> inputs = {"features": np.zeros((2, 5, 1280), np.float32), "lengths": np.array([5, 3])}
    >>> profile_shapes(Profile(best=(8, 320), most=(32, 512)), inputs)
    ('features:1x1x1280,lengths:1', 'features:8x320x1280,lengths:8', 'features:32x512x1280,lengths:32')
    """

    def shapes(free: tuple[int, int]) -> str:
        axes = {name: (*free[: value.ndim], *value.shape[2:]) for name, value in inputs.items()}
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in axes.items())

    return shapes((1, 1)), shapes(profile.best), shapes(profile.most)
