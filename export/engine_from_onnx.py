"""An ONNX scorer in, a TensorRT engine out, by TensorRT 10, TensorRT 11 or TensorRT-RTX: one builder API, three names.

Networks are strongly typed: the precision is in the graph (``half_precision``), and no builder flag changes it. An
engine of TensorRT runs on the GPU and version that built it. TensorRT-RTX also builds without a GPU, for compute
capabilities; that proves a graph parses, its types agree and its profiles hold, and says nothing about speed.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.backends.tensorrt import engine_cache
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES, Profile
from vsum_runtime.runtime.errors import BackendError, ExportError, InputError

log = logging.getLogger(__name__)

_RTX_BUNDLED = "onnxruntime_ep_nv_tensorrt_rtx"  # importing it loads the libraries the bindings need
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is built."""

    profiles: tuple[Profile, ...] = PROFILES
    """Shapes it serves."""
    workspace_bytes: int | None = None
    """Scratch memory a kernel may use while it is chosen and run; None: all there is."""
    hardware_compatible: bool = False
    """Run on every GPU from Ampere on, at some cost in speed; TensorRT only."""
    compute_capabilities: tuple[str, ...] = ()
    """Such as ("8.6", "8.9"): build for these instead of the GPU at hand; TensorRT-RTX only."""
    timing_cache: Path | None = None
    """File that remembers which kernels were fastest, read and extended; TensorRT only."""

    @property
    def flags(self) -> dict[str, Any]:
        return {
            "workspace_bytes": self.workspace_bytes,
            "hardware_compatible": self.hardware_compatible,
            "compute_capabilities": list(self.compute_capabilities),
        }


@dataclass(frozen=True)
class Built:
    """An engine and what its builder told about it."""

    plan: bytes
    memory_bytes: tuple[int, ...]
    """Activation memory of each profile; empty where the builder did not say."""
    products: dict[str, int]
    """Type -> matrix products and convolutions that compute in it."""


def load_library(name: str) -> Any:
    """The module of ``tensorrt`` or ``tensorrt_rtx``.

    Raises
    ------
    BackendError
        it is not installed, with the command that installs it
    """
    modules = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
    if name == "tensorrt_rtx":
        try:
            import_module(_RTX_BUNDLED)
        except ImportError:
            log.debug("%s is not installed; the libraries must be on the loader's path", _RTX_BUNDLED)
    reasons = []
    for module in modules[name]:
        try:
            return import_module(module)
        except ImportError as error:
            reasons.append(str(error))
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "trt-build"}[name]
    raise BackendError(f'{name} cannot be imported ({"; ".join(reasons)}); pip install "vsum-runtime[{extra}]"')


def build_engine(
    graph: Path,
    config: BuildConfig,
    library: Any,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Built:
    """Build an engine; nothing is written but the timing cache.

    Parameters
    ----------
    progress
        called with the phase, the step and the number of steps
    cancelled
        asked at each step; True ends the build

    Raises
    ------
    ExportError
        the graph does not parse, a profile does not hold, the build failed or was cancelled
    """
    heard = _listener(library)
    builder = library.Builder(heard)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, heard)
    if not parser.parse_from_file(str(graph)):
        problems = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ExportError(f"{graph.name}: {library.__name__} {library.__version__} cannot parse it: {problems}")
    settings = builder.create_builder_config()
    _configure(settings, config, library)
    for profile in config.profiles:
        _add_profile(builder, settings, network, profile)
    cache = _attach_timing_cache(settings, config.timing_cache)
    monitor = _monitor(library, progress, cancelled)
    settings.progress_monitor = monitor
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        if monitor.stopped:
            raise ExportError(f"{graph.name}: the build was cancelled; nothing was written")
        raise ExportError(
            f"{graph.name}: {library.__name__} cannot build it: {'; '.join(heard.errors) or 'no reason given'}"
        )
    if cache is not None and config.timing_cache is not None:
        with replacing(config.timing_cache) as temporary:
            temporary.write_bytes(bytes(settings.get_timing_cache().serialize()))
    return Built(bytes(plan), tuple(heard.memory_bytes), _product_types(network))


def cached_engine(
    graph: Path,
    precision: str,
    config: BuildConfig,
    library: Any,
    target: engine_cache.Target,
    folder: Path,
    gate: Callable[[engine_cache.Engine], dict[str, Any]],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The place of an engine in the cache, built now unless it is there; processes that want the same one wait.

    Parameters
    ----------
    gate
        runs the engine on the device and measures it; raises ExportError where it fails, and nothing is kept

    Raises
    ------
    ExportError
        it cannot be built, or is not equal enough to the float32 graph
    BackendError
        the cache cannot be written
    """
    digest = engine_cache.sha256(graph.read_bytes())
    name = engine_cache.key(digest, target, precision, config.profiles, config.flags)
    with engine_cache.building(folder, digest, name):
        place = folder / digest[:16] / name[:16]
        try:
            engine_cache.read(place, "")
            return place
        except BackendError:
            log.debug("%s: no whole engine there; building", place)
        built = build_engine(graph, config, library, progress=progress)
        record = {
            "target": vars(target),
            "precision": precision,
            "profiles": [vars(profile) for profile in config.profiles],
            **config.flags,
            "memory_bytes": list(built.memory_bytes),
            "products": built.products,
        }
        measured = gate(engine_cache.Engine(built.plan, config.profiles, record))
        return engine_cache.write(folder, digest, name, built.plan, {**record, "parity": {"passed": True, **measured}})


def engine_of_bundle(
    path: Path, config: BuildConfig, *, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Build the TensorRT engine of a bundle for the GPU at hand, prove it, and keep it in this user's cache.

    The half-precision graph is taken where the bundle has one.

    Raises
    ------
    BackendError
        no TensorRT, no GPU, or the cache cannot be written
    ExportError
        it cannot be built, or is not equal enough to the float32 graph on the CPU
    """
    from vsum_runtime.export.precision_gate import LIMIT, Gate, example_probes, failures
    from vsum_runtime.runtime.backends.tensorrt import cuda
    from vsum_runtime.runtime.backends.tensorrt import native as trt

    bundle = bundles.read(path)
    if bundle.precision == "int8":
        raise ExportError(f"{path}: quantized to int8 for CPUs; export it again with --precision fp16")
    library = load_library("tensorrt")
    device = cuda.open_cuda()
    graph, precision = (bundle.graph, "fp32") if bundle.half is None else (bundle.half, "fp16")
    reference = Gate(bundle.graph, example_probes(bundle.feature_dim), bundle.decoder)

    def gate(engine: engine_cache.Engine) -> dict[str, Any]:
        session = trt.TensorrtSession(library, device, engine, precision)
        try:
            measured = reference.measure(session)
        finally:
            session.close()
        if problems := failures(measured, LIMIT):
            raise ExportError(f"{graph.name}: the engine is not equal enough to float32: {'; '.join(problems)}")
        return {"limit": LIMIT, **measured}

    target, folder = trt.target_of(device, library), engine_cache.default_folder()
    return cached_engine(graph, precision, config, library, target, folder, gate, progress=progress)


def profiles_up_to(max_steps: int) -> tuple[Profile, ...]:
    """The shipped profiles, with the last one's longest video changed."""
    *shorter, longest = PROFILES
    if max_steps < longest.best[1]:
        raise InputError(f"--max-steps: expected at least {longest.best[1]}, got {max_steps}")
    return (*shorter, Profile(longest.best, (1, max_steps)))


def _configure(settings: Any, config: BuildConfig, library: Any) -> None:
    if config.workspace_bytes is not None:
        settings.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, config.workspace_bytes)
    if config.hardware_compatible:
        settings.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
    if config.compute_capabilities:
        if not hasattr(library, "ComputeCapability"):
            raise ExportError(
                "compute_capabilities: only TensorRT-RTX builds for a GPU that is not at hand; leave it out"
            )
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, capability in enumerate(config.compute_capabilities):
            known = getattr(library.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if known is None:
                raise ExportError(
                    f"compute capability {capability}: {library.__name__} {library.__version__} has no such"
                )
            settings.set_compute_capability(known, index)


def _add_profile(builder: Any, settings: Any, network: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        free = [index for index, size in enumerate(tensor.shape) if size < 0]
        least, best, most = (
            tuple(sizes[free.index(index)] if index in free else size for index, size in enumerate(tensor.shape))
            for sizes in ((1, 1), profile.best, profile.most)
        )
        shapes.set_shape(tensor.name, least, best, most)
    if settings.add_optimization_profile(shapes) < 0:
        raise ExportError(f"the profile {profile} does not hold for this graph")


def _attach_timing_cache(settings: Any, path: Path | None) -> Any:
    if path is None:
        return None
    cache = settings.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not settings.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("%s: of another GPU or version; it is made anew", path)
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _product_types(network: Any) -> dict[str, int]:
    """Read back from the parsed network, whose types are what strong typing builds."""
    types: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type.name in _PRODUCTS:
            types[layer.get_output(0).dtype.name] += 1
    return dict(types)


def _listener(library: Any) -> Any:
    """A logger that keeps errors and the memory of each profile, and passes warnings on."""

    class Listener(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.memory_bytes: list[int] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif found := re.fullmatch(r"Total Activation Memory: (\d+) bytes", message):
                self.memory_bytes.append(int(found[1]))
            elif severity == library.ILogger.WARNING:
                log.info("%s", message)

    return Listener()


def _monitor(
    library: Any, progress: Callable[[str, int, int], None] | None, cancelled: Callable[[], bool] | None
) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.stopped = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None:
            self._steps[phase] = n_steps

        def step_complete(self, phase: str, step: int) -> bool:
            # An exception must not travel through the library: it is taken as a wish to stop.
            try:
                if progress is not None:
                    progress(phase, step, self._steps.get(phase, 0))
                self.stopped = self.stopped or (cancelled is not None and cancelled())
            except BaseException:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()
