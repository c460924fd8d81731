"""Ways to score a batch on a GPU: ours, and what else an engineer would reach for. Each is opened for one model.

All get the same request: a list of videos in ordinary memory, float32 [T, D] each; and give arrays in ordinary memory.
Where the library allows it, the same work is also measured *resident*: input already on the card, output left there.

Peers are what a careful user writes, not straw men: inference mode, one padded batch, one copy each way. PyTorch in
eager mode runs our modules with their checks, which read the lengths from the card; in half precision under autocast,
which casts the weights at each call. ONNX Runtime "default" has all options as they come, TF32 products among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsum_runtime.runtime.backends import absences, backend
from vsum_runtime.runtime.calls import score
from vsum_runtime.runtime.proposals import Decoder
from vsum_runtime.training.cuda_graph import CudaGraphScorer

Videos = Sequence[NDArray[np.float32]]


class Absent(Exception):
    """A contestant that cannot run here, and why."""


@dataclass(frozen=True)
class Subject:
    """A model to score with, and its graphs."""

    name: str
    model: torch.nn.Module
    """On the CPU, in float32, in evaluation mode."""
    graph: Path
    half: Path
    """Absent where it could not be made."""
    decoder: Decoder | None


@dataclass(frozen=True)
class Call:
    """One request, ready to be made again and again."""

    request: Callable[[], list[NDArray[np.float32]]]
    """From ordinary memory and back: padded outputs in graph order."""
    resident: Callable[[], Any] | None
    """The same work on memory of the card, perhaps not finished on return; None where it cannot be had."""


class Opened:
    """A contestant that is ready: ``prepare`` makes a call of videos, ``throughput`` scores a list of mixed lengths."""

    def __init__(
        self,
        prepare: Callable[[NDArray[np.float32], NDArray[np.int64]], Call],
        close: Callable[[], None],
        many: Callable[[Videos], Any] | None = None,
    ) -> None:
        self.prepare, self._close = prepare, close
        self.many = many
        """Scores videos of mixed length by a plan of its own; None: one padded batch."""

    def close(self) -> None:
        self._close()


@dataclass(frozen=True)
class Contestant:
    name: str
    precision: str
    ours: bool
    open: Callable[[Subject, str], Opened]
    """Of a subject and "cuda" or "cpu"; raises Absent."""
    slow_to_open: bool = False
    """Compiles for each shape, for minutes at worst."""

    @property
    def label(self) -> str:
        """As rows name it."""
        return f"ours, {self.name}" if self.ours else self.name


def padded(videos: Videos) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """[B, T, D] and [B]"""
    lengths = np.array([len(video) for video in videos], dtype=np.int64)
    features = np.zeros((len(videos), lengths.max(), videos[0].shape[1]), dtype=np.float32)
    for row, video in zip(features, videos, strict=True):
        row[: len(video)] = video
    return features, lengths


def _session(backend_name: str, precision: str) -> Callable[[Subject, str], Opened]:
    """One of the runtime's backends. On the CPU, where this is a rehearsal, ort-cpu stands in for ort-cuda."""

    def open_(subject: Subject, device: str) -> Opened:
        name = "ort-cpu" if (device, backend_name) == ("cpu", "ort-cuda") else backend_name
        if (reason := absences()[name]) is not None:
            raise Absent(reason)
        graph = subject.graph if precision == "fp32" else subject.half
        if not graph.exists():
            raise Absent(f"{graph.name} could not be exported")
        if name == "tensorrt":
            _build_engine(graph, precision)
        session = backend(name).open(graph, precision=precision, n_threads=None)
        inner = next(iter(getattr(session, "_sessions", {}).values()), None)
        resident = None if inner is None else lambda features, lengths: _bound(inner, features, lengths, device)

        def prepare(features: NDArray[np.float32], lengths: NDArray[np.int64]) -> Call:
            inputs = {"features": features, "lengths": lengths}
            return Call(lambda: session.run(inputs), None if resident is None else resident(features, lengths))

        return Opened(prepare, session.close, many=lambda videos: score(session, videos))

    return open_


def _build_engine(graph: Path, precision: str) -> None:
    """Into this user's engine cache, as vsum-export does; here the rows themselves hold the comparison."""
    from vsum_runtime.export.engine_from_onnx import BuildConfig, cached_engine, load_library
    from vsum_runtime.runtime.backends.tensorrt import cuda, engine_cache
    from vsum_runtime.runtime.backends.tensorrt import native as trt

    library = load_library("tensorrt")
    target = trt.target_of(cuda.open_cuda(), library)
    folder = engine_cache.default_folder()
    cached_engine(graph, precision, BuildConfig(), library, target, folder, lambda engine: {"gate": "benchmark"})


def _ort_default(subject: Subject, device: str) -> Opened:
    import onnxruntime

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Absent(f"this onnxruntime has no {provider}")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(subject.graph), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise Absent(f"asked for {provider}, got {session.get_providers()}")

    def prepare(features: NDArray[np.float32], lengths: NDArray[np.int64]) -> Call:
        inputs = {"features": features, "lengths": lengths}
        return Call(lambda: session.run(None, inputs), _bound(session, features, lengths, device))

    return Opened(prepare, lambda: None)


def _bound(session: Any, features: NDArray[Any], lengths: NDArray[Any], device: str) -> Callable[[], None]:
    """A run whose inputs and outputs are on the card."""
    import onnxruntime

    binding = session.io_binding()
    values = {
        "features": onnxruntime.OrtValue.ortvalue_from_numpy(features, device, 0),
        "lengths": onnxruntime.OrtValue.ortvalue_from_numpy(lengths, device, 0),
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, device, 0)
    return lambda: session.run_with_iobinding(binding) if values else None  # holds the values as long as itself


def _torch(precision: str, *, compiled: bool = False) -> Callable[[Subject, str], Opened]:
    def open_(subject: Subject, device: str) -> Opened:
        import copy

        model: Any = copy.deepcopy(subject.model).to(device)
        if compiled:
            if device == "cpu":
                raise Absent("torch.compile is not rehearsed on the CPU")
            torch._dynamo.reset()
            # Past its limit, shapes would run uncompiled without a word.
            torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = 64, True
            model = torch.compile(model, mode="max-autotune", dynamic=False)

        def forward(features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=precision == "fp16"):
                outputs = model(features, lengths)
            return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)

        def prepare(features: NDArray[np.float32], lengths: NDArray[np.int64]) -> Call:
            here = torch.from_numpy(features).to(device), torch.from_numpy(lengths).to(device)

            def request() -> list[NDArray[np.float32]]:
                there = torch.from_numpy(features).to(device), torch.from_numpy(lengths).to(device)
                return [output.float().cpu().numpy() for output in forward(*there)]

            return Call(request, lambda: forward(*here))

        return Opened(prepare, lambda: None)

    return open_


def _torch_cuda_graph(subject: Subject, device: str) -> Opened:
    scorer = CudaGraphScorer(subject.model, device=device)

    def prepare(features: NDArray[np.float32], lengths: NDArray[np.int64]) -> Call:
        inputs = {"features": features, "lengths": lengths}
        recorded = scorer.recorded(*features.shape[:2])
        scorer.run(inputs)  # leaves the inputs on the card
        return Call(lambda: scorer.run(inputs), recorded.outputs)

    return Opened(prepare, scorer.close, many=lambda videos: score(scorer, videos))


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("torch eager fp32", "fp32", False, _torch("fp32")),
    Contestant("torch eager fp16", "fp16", False, _torch("fp16")),
    Contestant("torch-cuda-graph", "fp16", True, _torch_cuda_graph),
    Contestant("ort-cuda fp16", "fp16", True, _session("ort-cuda", "fp16")),
    Contestant("ort-cuda fp32", "fp32", True, _session("ort-cuda", "fp32")),
    Contestant("tensorrt fp16", "fp16", True, _session("tensorrt", "fp16"), slow_to_open=True),
    Contestant("ONNX Runtime CUDA, default", "fp32", False, _ort_default),
    Contestant("torch.compile max-autotune fp16", "fp16", False, _torch("fp16", compiled=True), slow_to_open=True),
)
