"""What is loaded: models by name and version, each with its queue, added and removed while others are served.

A model directory is a bundle, which is then version 1, or holds bundles in directories named 1, 2, 3, ...; a request
that names no version gets the highest. A version is ready when the bundle's own example has given the scores that the
manifest holds.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vsum_runtime.kernels import knapsack, nms, penalised, shot_scores
from vsum_runtime.kernels.compiled import start_compiler
from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.ort import cpu_count
from vsum_runtime.runtime.errors import BundleError, BusyError, InputError, NotFoundError, brief
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE, Summarizer
from vsum_runtime.runtime.serve.config import ServeConfig
from vsum_runtime.runtime.serve.isolated import IsolatedSession
from vsum_runtime.runtime.serve.request_queue import Batcher
from vsum_runtime.runtime.serve.schedule import QueueConfig

log = logging.getLogger(__name__)

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOLERANCE = {"fp32": 1e-4}
_TOLERANCE_OF_OTHERS = 5e-3  # half precision; a wrong graph is further off


@dataclass
class Counts:
    """What Triton counts of one model; times in nanoseconds, summed. Touched by the event loop only."""

    success: int = 0
    failure: int = 0
    videos: int = 0
    request_ns: int = 0
    failure_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    last_ms: int = 0


@dataclass(eq=False)
class Model:
    """One loaded version of one model."""

    name: str
    version: str
    summarizer: Summarizer
    batcher: Batcher
    counts: Counts = field(default_factory=Counts)
    _uses: int = 0
    _unused: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the summarizer open for a use that does not go through the queue."""
        with self._unused:
            self._uses += 1
        try:
            yield
        finally:
            with self._unused:
                self._uses -= 1
                self._unused.notify_all()

    def close(self, grace_s: float) -> None:
        until = time.monotonic() + grace_s
        self.batcher.close(grace_s=grace_s)
        with self._unused:
            self._unused.wait_for(lambda: self._uses == 0, max(0.0, until - time.monotonic()))
        self.summarizer.close()

    @property
    def feature_dim(self) -> int:
        return self.summarizer.bundle.feature_dim

    @property
    def takes_videos(self) -> bool:
        return self.summarizer.bundle.recipe is not None


class Models:
    """All models of one server. Loading and unloading take their time: call them from a thread."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._loaded: dict[str, dict[str, Model]] = {}
        self._problems: dict[str, str] = {}
        self._changing = threading.Lock()
        self.ready = False

    def __iter__(self) -> Iterator[Model]:
        for versions in list(self._loaded.values()):
            yield from versions.values()

    def get(self, name: str, version: str = "") -> Model:
        """The model of that name; the highest version where none is given."""
        versions = self._loaded.get(name)
        if not versions and not self.ready:
            raise BusyError("the server starts or stops; try again", retry_after_s=5)
        if not versions:
            raise NotFoundError(f"unknown model {brief(name)}; GET /v2/repository/index lists what is here")
        if version and version not in versions:
            raise NotFoundError(f"model {name!r} has no version {brief(version)}; there are {', '.join(versions)}")
        return versions[version or max(versions, key=int)]

    def versions(self, name: str) -> list[str]:
        return sorted(self._loaded.get(name, ()), key=int)

    def load_configured(self) -> None:
        """Load the models of the configuration; ready afterwards."""
        sources = dict(_named(entry) for entry in self._config.bundle) or {DEFAULT_NAME: DEFAULT_BUNDLE}
        if len(sources) < len(self._config.bundle):
            raise InputError(f"bundle: two entries have one name in {self._config.bundle}; write NAME=DIR")
        for name, folder in sources.items():
            self._load(name, folder)
        self.ready = True

    def load(self, name: str) -> None:
        """Load, or load again, the model of that name from the model directory."""
        self._load(name, self._folder(name))

    def unload(self, name: str) -> None:
        """Stop serving a model; requests that wait for it are answered first."""
        self._folder(name)
        with self._changing:
            versions = self._loaded.pop(name, None)
        if versions is None:
            raise NotFoundError(f"unknown model {brief(name)}: it is not loaded")
        self._close(versions)

    def index(self) -> list[dict[str, str]]:
        """Name, version, state and reason of every model that is loaded or could be."""
        rows = [{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in self]
        loaded = {row["name"] for row in rows}
        folder = self._config.model_dir
        there = {p.name for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)} if folder else set()
        for name in sorted((there | set(self._problems)) - loaded):
            reason = self._problems.get(name, "unloaded")
            rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason})
        return rows

    def close(self, grace_s: float) -> None:
        """Take no more, and finish what was taken, all models in one grace time."""
        self.ready = False
        with self._changing:
            everything, self._loaded = list(self._loaded.values()), {}
        until = time.monotonic() + grace_s
        for versions in everything:
            self._close(versions, until)

    def _folder(self, name: str) -> Path:
        """Where a name of a request may point: one directory deep in the model directory, and nowhere else."""
        if self._config.model_dir is None:
            raise InputError("models are fixed on this server; start it with model_dir to load and unload them")
        if not _NAME.fullmatch(name):
            raise InputError(f"model name: expected letters, digits, '.', '_' and '-', got {brief(name)}")
        folder = self._config.model_dir / name
        if folder.is_symlink() or not folder.is_dir():
            if name in self._loaded:
                return folder
            raise NotFoundError(f"unknown model {brief(name)}: the model directory has no such folder")
        return folder

    def _load(self, name: str, folder: Path) -> None:
        with self._changing:
            opened: dict[str, Model] = {}
            try:
                for version, part in _version_folders(folder).items():
                    opened[version] = self._open(name, version, part)
            except BaseException as error:
                self._close(opened)
                self._problems[name] = str(error)
                raise
            self._problems.pop(name, None)
            before = self._loaded.get(name, {})
            self._loaded[name] = opened
        self._close(before)

    def _open(self, name: str, version: str, folder: Path) -> Model:
        began = time.perf_counter()
        config = self._config
        n_processes = config.workers or cpu_count()
        isolated = partial(IsolatedSession, n_processes=n_processes, call_timeout_s=config.call_timeout_s)
        opener = isolated if config.isolate else open_session
        summarizer = Summarizer(folder, backend=config.backend, n_threads=config.threads, opener=opener)
        try:
            warm_up(summarizer)
            workers = config.workers or (cpu_count() if summarizer.batch_tokens == 1 else 2)
            queue = QueueConfig(
                max_requests=config.max_queue,
                max_steps=config.max_queue_steps,
                max_delay_s=config.max_queue_delay_ms / 1e3,
                timeout_s=config.timeout_s,
                workers=workers,
            )
            batcher = Batcher(summarizer.score, batch_tokens=summarizer.batch_tokens, config=queue)
        except BaseException:
            summarizer.close()
            raise
        seconds = time.perf_counter() - began
        log.info("model %s version %s is ready on %s after %.2f s", name, version, summarizer.backend, seconds)
        return Model(name, version, summarizer, batcher)

    def _close(self, versions: dict[str, Model], until: float | None = None) -> None:
        until = time.monotonic() + self._config.grace_s if until is None else until
        for model in versions.values():
            model.close(max(0.0, until - time.monotonic()))


def warm_up(summarizer: Summarizer) -> None:
    """Run the bundle's own example, all the way to a summary, by kernels that are compiled here and not at a request.

    Raises
    ------
    BundleError
        the scores are not those of the manifest
    """
    bundle = summarizer.bundle
    worst = summarizer.example_error()
    tolerance = _TOLERANCE.get(summarizer.precision, _TOLERANCE_OF_OTHERS)
    if not worst <= tolerance:
        raise BundleError(
            f"{bundle.path}: the example's scores are {worst:.1e} from those of the manifest, allowed are "
            f"{tolerance:.0e}; the graph does not run here as it did where it was exported"
        )
    for kernel in (penalised, shot_scores, knapsack, nms):
        start_compiler(kernel.__name__)
    features, lengths = bundles.example_features(bundle.feature_dim, bundle.example_lengths)
    summarizer.summarize_features(features[0, : lengths[0]])


def _named(entry: str) -> tuple[str, Path]:
    name, equals, folder = entry.partition("=")
    path = Path(folder if equals else entry)
    name = name if equals else path.resolve().name
    if not _NAME.fullmatch(name):
        raise InputError(f"bundle: expected DIR or NAME=DIR with a plain name, got {entry!r}")
    return name, path


def _version_folders(folder: Path) -> dict[str, Path]:
    if (folder / bundles.MANIFEST).is_file():
        return {"1": folder}
    try:
        found = {p.name: p for p in folder.iterdir() if re.fullmatch(r"[1-9][0-9]{0,8}", p.name) and not p.is_symlink()}
    except OSError:
        found = {}
    if not found:
        raise BundleError(f"{folder}: expected a bundle, or bundles in folders named 1, 2, ..., found neither")
    return found
