"""A PyTorch model on an NVIDIA GPU without TensorRT: half-precision weights, and CUDA graphs that replay.

Weights of products are cast to half once, when the scorer is made; autocast alone would cast them at every call. That
is the advantage of this way over plain autocast before anything is recorded, and benchmarks have to say so.

PyTorch starts the kernels of a model one by one, and a small batch may be done before the next is started. Recorded as
a CUDA graph of one shape they start together. Requests are padded to few shapes
(``runtime.backends.tensorrt.profiles.bucket``), which changes no score. This meets the contract of
``runtime.backends.base.Session``, but is not in its table: the runtime imports no torch.

>>> from training.models import build
>>> scorer = CudaGraphScorer(build("vasnet", feature_dim=16).eval(), device="cpu")  # the CPU runs the same, unrecorded
>>> features, lengths = np.ones((2, 5, 16), np.float32), np.array([5, 3])
>>> scorer.run({"features": features, "lengths": lengths})[0].shape
(2, 5)
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vsum_runtime.runtime.backends.tensorrt.native import Lru
from vsum_runtime.runtime.backends.tensorrt.profiles import Profile, bucket
from vsum_runtime.runtime.errors import BackendError, InputError
from vsum_runtime.training.models.batch import values_unread

_N_SHAPES = 16
_UNBOUNDED = Profile(best=(1, 320), most=(1 << 20, 1 << 20))
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)


@dataclass(frozen=True)
class Recorded:
    """Buffers of one shape and what computes on them."""

    features: Tensor
    lengths: Tensor
    outputs: Callable[[], tuple[Tensor, ...]]
    """Computes on what the buffers hold; the result lives until the next call."""


class CudaGraphScorer:
    """A model ready to score batches; threads take turns.

    Parameters
    ----------
    model
        of the model table; it is copied
    device
        "cuda", or "cpu", where nothing is recorded
    precision
        "fp16": products in half precision and what is fragile in float32, as autocast chooses; or "fp32"
    """

    name = "torch-cuda-graph"
    batch_tokens = 16_384
    n_callers = 1
    is_reference = uses_host_memory = False

    def __init__(self, model: nn.Module, *, device: str = "cuda", precision: str = "fp16") -> None:
        if precision not in ("fp16", "fp32"):
            raise InputError(f"precision: expected fp16 or fp32, got {precision!r}")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError("PyTorch finds no NVIDIA GPU here; use backend ort-cpu")
        self.precision, self._device = precision, torch.device(device)
        self._feature_dim = int(model.feature_dim)  # type: ignore[arg-type]
        self._model = copy.deepcopy(model).eval().to(self._device)
        if precision == "fp16":
            _halve_products(self._model)
        self._lock = threading.Lock()
        self._recorded: Lru[Recorded] = Lru(_N_SHAPES, lambda _: None)
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Outputs for ``features`` float32 [B, T, D] and ``lengths`` int64 [B].

        Raises
        ------
        InputError
            inputs of another shape, or a length outside 1..T
        BackendError
            the GPU has not enough memory, or failed
        """
        features, lengths = inputs["features"], inputs["lengths"]
        if features.ndim != 3 or features.shape[2] != self._feature_dim or lengths.shape != features.shape[:1]:
            raise InputError(
                f"features and lengths: expected [B, T, {self._feature_dim}] and [B], "
                f"got {list(features.shape)} and {list(lengths.shape)}"
            )
        n_videos, n_steps = features.shape[:2]
        if n_videos < 1 or lengths.min() < 1 or lengths.max() > n_steps:
            raise InputError(f"lengths: expected 1 to T={n_steps}, the steps in features, got {lengths.tolist()}")
        with self._lock:
            try:
                recorded = self.recorded(n_videos, n_steps)
                with torch.inference_mode():
                    recorded.features[:n_videos, :n_steps].copy_(torch.from_numpy(features))
                    recorded.features[:n_videos, n_steps:] = 0.0
                    recorded.lengths[:n_videos].copy_(torch.from_numpy(lengths))
                    recorded.lengths[n_videos:] = 1  # rows that only fill the shape
                    return [output[:n_videos, :n_steps].float().cpu().numpy() for output in recorded.outputs()]
            except torch.cuda.OutOfMemoryError as error:
                self._forget()
                raise BackendError(
                    f"out of device memory for {n_videos} videos of {n_steps} steps; use shorter videos or smaller "
                    f"batches ({str(error).partition('.')[0]})"
                ) from error
            except RuntimeError as error:
                raise BackendError(f"{self.name} failed: {error}") from error

    def recorded(self, n_videos: int, n_steps: int) -> Recorded:
        """The buffers that a request of this shape goes through; recorded now unless they are there."""
        shape = bucket(_UNBOUNDED, n_videos, n_steps)
        return self._recorded.get(shape, lambda: self._record(*shape))

    @torch.inference_mode()
    def _record(self, n_videos: int, n_steps: int) -> Recorded:
        features = torch.zeros(n_videos, n_steps, self._feature_dim, device=self._device)
        lengths = torch.full((n_videos,), n_steps, device=self._device)

        def compute() -> tuple[Tensor, ...]:
            half = self.precision == "fp16"
            # The cache of casts would hand a graph memory that is freed after recording.
            with (
                torch.inference_mode(),
                values_unread(),
                torch.autocast(self._device.type, torch.float16, enabled=half, cache_enabled=False),
            ):
                outputs = self._model(features, lengths)
            return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

        if self._device.type == "cpu":
            return Recorded(features, lengths, compute)
        # Libraries choose kernels and take scratch memory at first calls, which may not happen while recording.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: no two graphs run at once, and each one's outputs are copied before the next runs.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = compute()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return outputs

        return Recorded(features, lengths, replay)

    def _forget(self) -> None:
        self._recorded.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            self._pool = torch.cuda.graph_pool_handle()  # the old one ended with its last graph

    def close(self) -> None:
        self._forget()


def _halve_products(model: nn.Module) -> None:
    """Weights of products in half precision, so that autocast need not cast them at every call; pictures channels last,
    as tensor cores read them. Norms and recurrent layers keep float32: autocast has its own ways with them.
    """
    for layer in model.modules():
        if isinstance(layer, _PRODUCTS) and not parametrize.is_parametrized(layer):
            layer.half()
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
