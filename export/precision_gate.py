"""The gate of lower-precision graphs: scores stay within a limit of the float32 graph's, and summaries are the same.

Every value is rounded to half, but sums inside an operator are float32 on the CPU, and a GPU may round those too: the
search for islands stays at three quarters of the limit, and every engine is measured again where it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsum_runtime.export.half_precision import emulated
from vsum_runtime.kernels.metrics import kendall_tau
from vsum_runtime.runtime import hdf5
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.bundle import example_features
from vsum_runtime.runtime.calls import score
from vsum_runtime.runtime.choice import choose
from vsum_runtime.runtime.errors import BackendError, ExportError, InputError
from vsum_runtime.runtime.proposals import Decoder
from vsum_runtime.runtime.shots import find_shots

log = logging.getLogger(__name__)

LIMIT = 1e-3
"""Largest allowed absolute difference of a score."""

SEARCH_LIMIT = 0.75 * LIMIT
"""The same for the search, which knows the CPU only."""
_BUDGET = 0.15
_EXAMPLE_LENGTHS = (1, 4, 60, 333, 700)


@dataclass(frozen=True)
class Probe:
    """A video to compare on."""

    features: NDArray[np.float32]
    """[T, D]"""
    picks: NDArray[np.int64]
    """[T]"""
    n_frames: int
    shots: NDArray[np.int64] = field(compare=False)
    """[S, 2], half-open"""


def example_probes(feature_dim: int) -> list[Probe]:
    """Made-up videos of several lengths, where no data set is given."""
    features, lengths = example_features(feature_dim, _EXAMPLE_LENGTHS)
    return [_probe(features[row, :n], np.arange(n) * 15, int(n) * 15) for row, n in enumerate(lengths)]


def dataset_probes(path: Path, feature_dim: int, excluded: Collection[str]) -> list[Probe]:
    """Videos of an HDF5 file of the field's layout (``features`` and, optional, ``picks`` and ``n_frames`` per video).

    Videos whose key is in ``excluded`` (those the model learned from) are left out unless none would remain.

    Raises
    ------
    InputError
        not such a file, or features of another size
    """
    probes = []
    with hdf5.open_file(path, "an HDF5 file of features") as file:
        stored = {
            key: features
            for key, group in hdf5.groups(file, path).items()
            if (features := hdf5.field(group, "features", f"{path}: {key}")) is not None
        }
        if not stored:
            raise InputError(f"{path}: expected videos with 'features', found none")
        for key in [key for key in stored if key not in excluded] or stored:
            features, place = stored[key], f"{path}: {key}"
            if len(features.shape) != 2 or features.shape[1] != feature_dim or features.dtype.kind not in "iuf":
                raise InputError(f"{place}: expected features [T, {feature_dim}], got {features.shape}")
            rows = features.read().astype(np.float32)
            picks = _whole(hdf5.field(file[key], "picks", place), len(rows))
            n_frames = _whole(hdf5.field(file[key], "n_frames", place), 1)
            steps = np.arange(len(rows)) * 15 if picks is None else picks
            probes.append(_probe(rows, steps, max(0 if n_frames is None else int(n_frames[0]), int(steps[-1]) + 1)))
    return probes


def _whole(stored: hdf5.Field | None, length: int) -> NDArray[np.int64] | None:
    """Integers [length] of an HDF5 file."""
    if stored is None or stored.is_blank:
        return None
    values = stored.read().reshape(-1) if int(np.prod(stored.shape)) == length and stored.dtype.kind in "iuf" else None
    if values is None or not (np.abs(values) < 2**40).all():
        raise InputError(f"{stored.place}: expected {length} integers, got {stored.dtype} {list(stored.shape)}")
    return values.astype(np.int64)


class Gate:
    """Compares graphs with one float32 graph on the same videos."""

    def __init__(self, reference: Path, probes: Sequence[Probe], decoder: Decoder | None = None) -> None:
        self.probes, self._decoder = probes, decoder
        session = open_session(reference, "ort-cpu")
        self._scores = score(session, [probe.features for probe in probes], decoder)
        session.close()
        self._chosen = [_summary(probe, scores) for probe, scores in zip(probes, self._scores, strict=True)]
        self._hardest_first = sorted(range(len(probes)), key=lambda row: len(probes[row].features))

    def measure(self, session: Session, videos: Sequence[int] | None = None) -> dict[str, Any]:
        """How far a session's scores and summaries are from the float32 graph's, on these of the probes or on all.

        Returns
        -------
        dict
            ``max_abs_difference``, ``min_kendall_tau`` (None where no video has one), ``videos``, ``same_summaries``
        """
        rows = range(len(self.probes)) if videos is None else videos
        probes, scores = [self.probes[row] for row in rows], [self._scores[row] for row in rows]
        found = score(session, [probe.features for probe in probes], self._decoder)
        differences = [float(np.abs(a - b).max()) for a, b in zip(found, scores, strict=True)]
        taus = [float(kendall_tau(a, b[None])[0]) for a, b in zip(found, scores, strict=True) if len(a) > 1]
        taus = [tau for tau in taus if np.isfinite(tau)]
        chosen = [self._chosen[row] for row in rows]
        same = [np.array_equal(_summary(p, s), c) for p, s, c in zip(probes, found, chosen, strict=True)]
        return {
            "max_abs_difference": max(differences),
            "min_kendall_tau": min(taus, default=None),
            "videos": len(probes),
            "same_summaries": sum(same),
        }

    def passes(self, model: onnx.ModelProto) -> bool:
        """Whether a half-precision graph is well inside the limit; for the search.

        Ends at the first video that fails, and asks that one first the next time: most graphs of a search fail on it.
        """
        session = HalfOnCpu(model)
        for place, video in enumerate(self._hardest_first):
            try:
                if not failures(self.measure(session, [video]), SEARCH_LIMIT):
                    continue
            except BackendError as error:  # scores that are not finite
                log.debug("video %d: %s", video, error)
            self._hardest_first.insert(0, self._hardest_first.pop(place))
            return False
        return True

    def check(self, path: Path) -> dict[str, Any]:
        """Measure a half-precision file.

        Raises
        ------
        ExportError
            it is outside the limit, and by how much
        """
        measured = self.measure(HalfOnCpu(onnx.load(path)))
        if problems := failures(measured, LIMIT):
            raise ExportError(
                f"{path.name}: half precision is not equal enough to float32: {'; '.join(problems)}; "
                "find the parts that need float32 with --auto-precision"
            )
        return {"reference": "onnx fp32", "limit": LIMIT, "backend": "ort-cpu, every value rounded to half", **measured}


def failures(measured: Mapping[str, Any], limit: float) -> list[str]:
    """What of a measurement is outside the limit; empty where nothing is."""
    problems = []
    if not measured["max_abs_difference"] <= limit:
        problems.append(f"scores differ by {measured['max_abs_difference']:.1e}, at most {limit:.0e} is allowed")
    if measured["same_summaries"] < measured["videos"]:
        problems.append(f"{measured['videos'] - measured['same_summaries']} of {measured['videos']} summaries change")
    return problems


class HalfOnCpu:
    """A half-precision graph on the CPU, to measure it; the runtime takes the float32 graph there."""

    name, precision, batch_tokens, n_callers = "ort-cpu", "fp16", 1, 1
    is_reference, uses_host_memory = False, True

    def __init__(self, half: onnx.ModelProto) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = onnxruntime.InferenceSession(
            emulated(half).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self._session.run(None, dict(inputs))
        return outputs

    def close(self) -> None:
        self._session = None


def _probe(features: NDArray[np.float32], picks: NDArray[Any], n_frames: int) -> Probe:
    steps = np.asarray(picks, dtype=np.int64)
    return Probe(features, steps, n_frames, find_shots(features, steps, n_frames))


def _summary(probe: Probe, scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return choose(scores, probe.picks, probe.shots, probe.n_frames, _BUDGET, may_be_empty=True).chosen
