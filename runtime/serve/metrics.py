"""What the server counts, as text for Prometheus: Triton's names for V2, ours for whole videos."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from vsum_runtime.runtime.serve.models import Model, Models

# Triton's counters lack the suffix _total that the client library gives every counter, so their lines are made here.
_TRITON: dict[str, tuple[str, str, Callable[[Model], float]]] = {
    "nv_inference_request_success": ("counter", "Requests that were answered", lambda m: m.counts.success),
    "nv_inference_request_failure": ("counter", "Requests that failed", lambda m: m.counts.failure),
    "nv_inference_count": ("counter", "Videos scored", lambda m: m.counts.videos),
    "nv_inference_exec_count": ("counter", "Calls of the model", lambda m: m.batcher.executions),
    "nv_inference_request_duration_us": ("counter", "Time of requests", lambda m: m.counts.request_ns // 1000),
    "nv_inference_queue_duration_us": ("counter", "Time in the queue", lambda m: m.counts.queue_ns // 1000),
    "nv_inference_compute_input_duration_us": ("counter", "Time of reading", lambda m: m.counts.input_ns // 1000),
    "nv_inference_compute_infer_duration_us": ("counter", "Time of the model", lambda m: m.counts.infer_ns // 1000),
    "nv_inference_compute_output_duration_us": ("counter", "Time of answering", lambda m: m.counts.output_ns // 1000),
    "nv_inference_pending_request_count": ("gauge", "Requests that wait", lambda m: m.batcher.n_waiting),
}


class Metrics:
    """The counters of one server."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._registry = CollectorRegistry()
        self.stage_s = Histogram(
            "vsum_stage_seconds",
            "Time of one stage of one video",
            ["stage"],
            buckets=(0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800),
            registry=self._registry,
        )
        self.jobs = Counter("vsum_jobs", "Videos by how they ended", ["state"], registry=self._registry)

    def text(self) -> bytes:
        lines = []
        models = list(self._models)
        for name, (kind, meaning, value) in _TRITON.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f'{name}{{model="{m.name}",version="{m.version}"}} {value(m)}' for m in models]
        return "\n".join(lines).encode() + b"\n" + generate_latest(self._registry)
