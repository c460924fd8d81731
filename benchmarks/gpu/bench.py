"""How fast is every model on this GPU, by every way to run it, and how near to what the card can do?

    benchmarks/gpu/run.sh                                        # all of it, on a machine with a GPU
    python -m benchmarks.gpu.bench --dry-run                     # the same code on the CPU, in seconds; keeps no number
    python -m benchmarks.gpu.bench --minutes 18                  # what is missing, the important first

Every row is written as soon as it is measured; a second run measures what is missing. What ended the process is marked
and not tried again. Random weights (speed does not depend on them), 1024 features of length one.

Measured for each contestant, model and shape: the time of a *request* (arrays in host memory in and out) and of the
*resident* work (all on the card), both also as 99th percentile; the memory of the card that the contestant took, which
is a peak, as allocators keep it; how far its scores are from those of PyTorch in float32 on the CPU, on the shortest
and longest video of the batch, and whether the summaries they give are the same; and its share of the floor: the time
the card needs at least, from the operations (products only) and the bytes (features, weights, scores once each) at the
rates measured on it. Floors in fp32 take the TF32 rate, which some contestants use.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu import card
from benchmarks.gpu.contestants import CONTESTANTS, Absent, Contestant, Opened, Subject, padded
from benchmarks.gpu.graphs import DIM, export, fresh, paths
from benchmarks.measure.rows import RESULTS, Results, Row, read
from vsum_runtime.kernels.metrics import kendall_tau
from vsum_runtime.runtime.choice import choose
from vsum_runtime.runtime.proposals import Decoder, decode
from vsum_runtime.training.models import MODELS

HERE = Path(__file__).resolve().parent
REQUEST, STARTED, CEILINGS, RTX = "request", "started", "ceilings", "TensorRT-RTX"
COMMAND = "benchmarks/gpu/run.sh"
IMPORTANCE = ("csta", "pgl_sum", "vasnet", "dsnet_af", "ca_sum", "nonlocal_ridge", "ac_sum_gan", "dr_dsn", "fcsn")
_STEPS_PER_SHOT = 10
_COMPILE_S = 90.0  # no compilation starts with less time left
_LOST = 3  # exit status: the card no longer answers this process


@dataclass(frozen=True)
class Shape:
    """The videos of one request."""

    name: str
    lengths: tuple[int, ...]

    @property
    def ragged(self) -> bool:
        return len(set(self.lengths)) > 1


def grid(steps: Sequence[int], batches: Sequence[int]) -> list[Shape]:
    return [Shape(f"{n_videos} x {n_steps}", (n_steps,) * n_videos) for n_steps in steps for n_videos in batches]


def ragged(n_videos: int) -> Shape:
    """Lengths drawn from TVSum's."""
    steps = json.loads((HERE / "tvsum_steps.json").read_text(encoding="utf-8"))["steps"]
    drawn = np.random.default_rng(0).choice(steps, n_videos)
    return Shape(f"{n_videos} of TVSum", tuple(int(n) for n in drawn))


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and for how long."""

    device: str = "cuda"
    minutes: float = 18.0
    feature_dim: int = DIM
    models: tuple[str, ...] = (*IMPORTANCE, *(name for name in MODELS if name not in IMPORTANCE))
    first: tuple[Shape, ...] = (Shape("1 x 320", (320,)), ragged(32), Shape("32 x 320", (320,) * 32))
    """Shapes measured before any other, for all models."""
    rest: tuple[Shape, ...] = (*grid((60, 320, 1000, 3000), (1, 8, 32)), ragged(8))
    least_s: float = 0.25
    """Seconds of calls behind one percentile; at least three calls, at most 1000."""


REHEARSAL = BenchConfig(
    device="cpu",
    minutes=5.0,
    feature_dim=16,
    models=("nonlocal_ridge",),
    first=(Shape("1 x 12", (12,)), Shape("2 of 3 lengths", (9, 14))),
    rest=(Shape("2 x 12", (12, 12)),),
    least_s=0.0,
)


def schedule(config: BenchConfig) -> Iterator[tuple[float, str, Contestant, list[Shape]]]:
    """Share of the time to be left for later, model, contestant and shapes, small ones first.

    The important before the rest; and what compiles for long must leave time for the quick rows of other shapes.
    """
    rest = tuple(shape for shape in config.rest if shape.name not in {known.name for known in config.first})
    for shapes, slow, share_left in (
        (config.first, False, 0.0),
        (config.first, True, 0.4),
        (rest, False, 0.0),
        ((*config.first, *rest), True, 0.0),
    ):
        ordered = sorted(shapes, key=lambda shape: len(shape.lengths) * max(shape.lengths))
        for name in config.models:
            for contestant in CONTESTANTS:
                if contestant.slow_to_open == slow:
                    yield share_left, name, contestant, ordered


class Bench:
    """Measures what a file does not hold yet."""

    def __init__(
        self, config: BenchConfig, graphs: Path, results: Results, known: Sequence[Row], ceilings: dict[str, float]
    ) -> None:
        self._config, self._graphs, self._results, self._ceilings = config, graphs, results, ceilings
        self._until = time.monotonic() + 60 * config.minutes
        self._subjects: dict[str, Subject] = {}
        self._references: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
        self._operations: dict[tuple[str, int], float | None] = {}
        self._known: set[tuple[str, str, str]] = set()
        for row in known:
            where = row.what, row.size, row.implementation
            if row.note == STARTED:
                results.add(*where, [], metric=REQUEST, note="error: the process ended during this row")
            if row.metric == REQUEST and not row.note.startswith("absent"):  # what was absent may be here by now
                self._known.add(where)

    def left_s(self) -> float:
        return self._until - time.monotonic()

    def run(self) -> int:
        for share_left, model, contestant, shapes in schedule(self._config):
            missing = [shape for shape in shapes if (model, shape.name, contestant.label) not in self._known]
            least_s = max(60 * share_left * self._config.minutes, _COMPILE_S if contestant.slow_to_open else 0.0)
            if missing and self.left_s() > least_s:
                self._measure_all(model, contestant, missing, least_s)
                if not _answers(self._config.device):
                    print("the card no longer answers this process; start again to go on", file=sys.stderr)
                    return _LOST
        return 0

    def _measure_all(self, model: str, contestant: Contestant, shapes: Sequence[Shape], least_s: float) -> None:
        """Rows of these shapes, as long as more than ``least_s`` is left."""
        card.release(self._config.device)
        before = card.used_bytes(self._config.device)
        opened: Opened | None = None
        try:
            for shape in shapes:
                if self.left_s() <= least_s:
                    return
                where = model, shape.name, contestant.label
                self._results.add(*where, [], metric=REQUEST, note=STARTED)
                self._known.add(where)
                try:
                    if opened is None:
                        opened = contestant.open(self._subject(model), self._config.device)
                    self._measure(model, contestant, opened, shape, before)
                except Absent as reason:
                    self._results.add(*where, [], metric=REQUEST, note=f"absent: {reason}")
                except Exception as error:
                    note = f"error: {type(error).__name__}: {error}"[:400]
                    self._results.add(*where, [], metric=REQUEST, note=note)
                    if not _answers(self._config.device):
                        return
        finally:
            if opened is not None:
                opened.close()

    def _measure(self, model: str, contestant: Contestant, opened: Opened, shape: Shape, before: int | None) -> None:
        videos = _videos(shape, self._config.feature_dim)
        features, lengths = padded(videos)
        call, device = opened.prepare(features, lengths), self._config.device
        parity = self._parity(model, shape, call.request())
        request: Callable[[], Any] = call.request
        if shape.ragged:
            many = opened.many or (lambda videos: (padded(videos), call.request()))
            request = lambda: many(videos)  # noqa: E731
        times = {REQUEST: self._seconds(request)}
        if call.resident is not None:
            resident = call.resident

            def finished() -> None:
                resident()
                card.synchronize(device)

            times["resident"] = self._seconds(finished)
        after = card.used_bytes(device)

        def add(metric: str, values: Sequence[float], unit: str = "") -> None:
            self._results.add(model, shape.name, contestant.label, values, metric=metric, unit=unit)

        for name, seconds in times.items():
            if len(seconds) >= 100:
                add(f"{name}, 99th percentile", [float(np.quantile(seconds, 0.99))], "s")
        for metric, value in parity.items():
            add(metric, [] if value is None else [value])
        add("throughput", [len(videos) / float(np.median(times[REQUEST]))], "videos/s")
        if before is not None and after is not None:
            add("memory of the card", [after - before], "B")
        floor_s = self._floor_s(model, contestant, shape)
        if floor_s is not None:
            add("share of the floor", [floor_s / float(np.median(times.get("resident", times[REQUEST])))])
        for name in reversed(times):  # the request last: a row of it stands for all others
            add(name, times[name], "s")

    def _seconds(self, call: Callable[[], Any]) -> list[float]:
        for _ in range(3):
            call()
        seconds: list[float] = []
        began = time.perf_counter()
        while len(seconds) < 3 or (time.perf_counter() - began < self._config.least_s and len(seconds) < 1000):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _subject(self, name: str) -> Subject:
        if name not in self._subjects:
            dim = self._config.feature_dim
            if problem := export(name, dim, self._graphs):
                print(problem, file=sys.stderr, flush=True)
            model = fresh(name, dim)
            self._subjects[name] = Subject(
                name, model, *paths(self._graphs, name, dim), getattr(model, "decoder", None)
            )
        return self._subjects[name]

    def _parity(self, model: str, shape: Shape, outputs: list[NDArray[np.float32]]) -> dict[str, float | None]:
        """Scores of the shortest and longest video against float32 on the CPU, each alone; None: not finite."""
        subject = self._subject(model)
        chosen = sorted({int(np.argmin(shape.lengths)), int(np.argmax(shape.lengths))})
        expected = self._reference(subject, shape, chosen)
        differences, taus, same = [], [], 0
        for video, scores in zip(chosen, expected, strict=True):
            other = _scores([output[video, : len(scores)] for output in outputs], subject.decoder)
            if not np.isfinite(other).all():
                return {"largest difference": None, "least tau": None, "same summaries": 0.0}
            differences.append(float(np.abs(other - scores).max()))
            tau = float(kendall_tau(other, scores[None])[0])
            taus += [tau] if math.isfinite(tau) else []
            same += np.array_equal(_summary(other), _summary(scores))
        return {
            "largest difference": max(differences),
            "least tau": min(taus, default=None),
            "same summaries": same / len(chosen),
        }

    def _reference(self, subject: Subject, shape: Shape, chosen: Sequence[int]) -> list[NDArray[np.float32]]:
        key = subject.name, shape.name
        if key not in self._references:
            videos = _videos(shape, self._config.feature_dim)
            with torch.inference_mode():
                self._references[key] = [_reference_scores(subject, videos[video]) for video in chosen]
        return self._references[key]

    def _floor_s(self, model: str, contestant: Contestant, shape: Shape) -> float | None:
        if shape.ragged:
            return None
        n_videos, n_steps = len(shape.lengths), shape.lengths[0]
        if (model, n_steps) not in self._operations:
            self._operations[model, n_steps] = _operations(self._subject(model), n_steps, self._config)
        operations = self._operations[model, n_steps]
        if operations is None:
            return None
        item = 2 if contestant.precision == "fp16" else 4
        weights = sum(p.numel() for p in self._subject(model).model.parameters())
        moved = 4 * n_videos * n_steps * (self._config.feature_dim + 1) + item * weights
        rate = self._ceilings["fp16" if contestant.precision == "fp16" else "tf32"]
        return max(n_videos * operations / rate, moved / self._ceilings["copy"])


def _reference_scores(subject: Subject, video: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs = subject.model(torch.from_numpy(video)[None], torch.tensor([len(video)]))
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return _scores([output[0].numpy() for output in outputs], subject.decoder)


def _scores(outputs: list[NDArray[np.float32]], decoder: Decoder | None) -> NDArray[np.float32]:
    return outputs[0] if decoder is None else decode(decoder, *outputs).scores


def _summary(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Shots chosen of shots of ten steps: random features have no scenes to find."""
    n_frames = 15 * len(scores)
    starts = np.arange(0, n_frames, 15 * _STEPS_PER_SHOT)
    shots = np.stack([starts, np.append(starts[1:], n_frames)], axis=1)
    return choose(scores, np.arange(len(scores)) * 15, shots, n_frames, 0.15, may_be_empty=True).chosen


def _videos(shape: Shape, feature_dim: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    videos = [rng.standard_normal((n_steps, feature_dim), dtype=np.float32) for n_steps in shape.lengths]
    return [video / np.linalg.norm(video, axis=1, keepdims=True) for video in videos]


def _operations(subject: Subject, n_steps: int, config: BenchConfig) -> float | None:
    """Operations of the products of one video, counted by PyTorch while it runs it; None where it cannot."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    def recurrent(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
        return 2 * x[0] * x[1] * sum(math.prod(weight) for weight in weights if len(weight) == 2)

    try:
        model = copy.deepcopy(subject.model).to(config.device)
        features = torch.rand(1, n_steps, config.feature_dim, device=config.device)
        lengths = torch.tensor([n_steps], device=config.device)
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._cudnn_rnn: recurrent})
        with torch.no_grad(), counter:
            model(features, lengths)
        return float(counter.get_total_flops()) or None
    except Exception as error:
        print(f"{subject.name}: operations not counted: {error}", file=sys.stderr)
        return None
    finally:
        card.release(config.device)


def _answers(device: str) -> bool:
    """Whether the card still works for this process: some errors end that."""
    if device == "cpu":
        return True
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bench", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="one tiny model on the CPU, to see that all this runs")
    parser.add_argument("--minutes", type=float, default=BenchConfig.minutes)
    parser.add_argument("--models", nargs="*", default=list(BenchConfig.models), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--graphs", type=Path, metavar="DIR", help="where the graphs are, or are to be exported")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    args = parser.parse_args(argv)
    config = BenchConfig(minutes=args.minutes, models=tuple(args.models))
    if args.dry_run:
        config = REHEARSAL
    elif not torch.cuda.is_available():
        print("PyTorch finds no NVIDIA GPU here; --dry-run rehearses on the CPU", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True  # for all who use PyTorch: every shape is run many times
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or (Path(folder) if args.dry_run else RESULTS)
        graphs = args.graphs or Path(folder) / "graphs"
        for place in (out, graphs):
            place.mkdir(parents=True, exist_ok=True)
        device = card.describe(config.device)
        path = out / f"gpu_{re.sub('[^a-z0-9]+', '_', device.partition(',')[0].lower()).strip('_')}.json"
        results, known = Results(COMMAND, card.PACKAGES, path, device=device), read(path)
        ceilings = card.ceilings(config.device)
        for name, rate in ceilings.items():
            what, unit = ("copy", "B/s") if name == "copy" else (f"products, {name}", "FLOP/s")
            results.add(CEILINGS, "", what, [rate], metric="rate", unit=unit)
        if config.device == "cuda" and not any(row.implementation == RTX for row in known):
            results.add(CEILINGS, "", RTX, [], note=json.dumps(card.ask_rtx()))
        return Bench(config, graphs, results, known, ceilings).run()


if __name__ == "__main__":
    raise SystemExit(main())
