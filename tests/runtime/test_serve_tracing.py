"""Spans of requests, as an exporter of OpenTelemetry gets them."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
pytest.importorskip("opentelemetry.sdk", reason="traces are an extra: vsum-runtime[otel]")
triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")

from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from vsum_runtime.runtime.serve import Server  # noqa: E402

DIM = 1280
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_is_a_span_below_its_callers_with_queue_and_compute_below_it(protocol: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with Server(port=0, grpc_port=0, tracer_provider=provider) as server:
        module, port = (triton_http, server.port) if protocol == "http" else (triton_grpc, server.grpc_port)
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor = module.InferInput("features", [1, 9, DIM], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 9, DIM), np.float32))
            client.infer("default", [tensor], headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            with pytest.raises(Exception, match="unknown model"):
                client.infer("nobody", [tensor])
    spans: dict[str, Any] = {
        span.name: span for span in exporter.get_finished_spans() if span.context.trace_id == int(TRACE, 16)
    }
    name = {"http": "POST /v2/models/{model}/infer", "grpc": "inference.GRPCInferenceService/ModelInfer"}[protocol]
    assert set(spans) == {name, "queue", "compute"}
    whole, queue, compute = (spans[key] for key in (name, "queue", "compute"))
    assert whole.parent.span_id == int(PARENT, 16)
    assert {queue.parent.span_id, compute.parent.span_id} == {whole.context.span_id}
    assert compute.attributes["vsum.steps"] == 9
    assert queue.start_time <= queue.end_time == compute.start_time < compute.end_time
    others = [span for span in exporter.get_finished_spans() if span.context.trace_id != int(TRACE, 16)]
    assert [span.attributes.get("http.response.status_code", 404) for span in others] == [404]


def test_spans_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To a collector that listens on a socket, by the protocol of OpenTelemetry."""
    got: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "summaries")
        with Server(port=0) as server:
            assert httpx.get(server.url + "/v1/jobs/a-secret").status_code == 404
        collector.shutdown()
        thread.join()
    sent = b"".join(got)
    assert b"summaries" in sent
    assert b"GET /v1/jobs/{job}" in sent
    assert b"a-secret" not in sent


def test_nothing_of_it_is_loaded_where_nothing_asks_for_it() -> None:
    import subprocess
    import sys

    code = "import sys, runtime.serve.rest.app as a; a.create_app(); print('opentelemetry' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.lower()) is False
