"""Requests made to take more memory than they count for: what a server of its own takes at most, next to its limit."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
grpc = pytest.importorskip("grpc", reason="grpcio is an extra: vsum-runtime[grpc]")
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory in /proc")

LIMIT_MB = 32
RATIO = 6.0
"""Memory at the peak of all attacks, above that of the idle server, to max_reading_mb: what docs/serving.md states. It
is above 1 because threads keep what they free, in pieces that the next request may not fit in, and because a message of
gRPC is counted only when it has come whole."""
N = 4
"""Requests at once."""
DIM = 1280


@dataclass(frozen=True)
class Served:
    url: str
    grpc_port: int
    pid: int
    idle_mb: float = 0.0

    def memory_mb(self, line: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split(line + ":")[1].split()[0]) / 1e3


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server in a process of its own, warm."""
    command = [sys.executable, "-m", "vsum_runtime.runtime.serve", "--port", "0", "--grpc-port", "0"]
    command += ["--max-reading-mb", str(LIMIT_MB), "--max-body-mb", str(LIMIT_MB)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            words = json.loads(line).get("message", "").split()
            if words[:1] == ["listening"]:
                found = Served(words[2].rstrip(","), int(words[-1]), process.pid)
                break
        assert post(found, *features_body(200)) == 200
        found = replace(found, idle_mb=found.memory_mb("VmRSS"))
        drained = ThreadPoolExecutor(1).submit(process.stderr.read)
        yield found
        process.terminate()
        assert process.wait(30) == 0
        drained.result()


def post(served: Served, content: bytes, headers: dict[str, str] | None = None) -> int:
    url = served.url + "/v2/models/default/infer"
    return int(httpx.post(url, content=content, headers=headers, timeout=60).status_code)


def features_body(n_steps: int) -> tuple[bytes, dict[str, str]]:
    values = np.zeros((1, n_steps, DIM), np.float32)
    tensor = {"name": "features", "datatype": "FP32", "shape": values.shape}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": values.nbytes}}]}).encode()
    return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def in_json(data: bytes) -> bytes:
    return b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 1, 1280], "data": [%s]}]}' % data


def over_http(content: bytes, **headers: str) -> Callable[[Served], int]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda served: post(served, content, named)


def over_grpc(content: bytes) -> Callable[[Served], int]:
    def ask(served: Served) -> int:
        with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
            try:
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(content, timeout=60)
            except grpc.RpcError as error:
                return {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.UNAVAILABLE: 503}[error.code()]
        return 200

    return ask


MB = 1_000_000
ATTACKS: dict[str, Callable[[], Callable[[Served], int]]] = {
    "features that are honest": lambda: over_http(features_body(2000)[0], **{"Inference_Header_Content_Length": "0"}),
    "empty lists": lambda: over_http(in_json(b"[]," * (2 * MB) + b"1")),
    "empty objects": lambda: over_http(in_json(b"{}," * (2 * MB) + b"1")),
    "objects of one": lambda: over_http(in_json(b'{"a":1},' * MB + b"1")),
    "one long string among many": lambda: over_http(in_json(b'"%s",' % (b"x" * MB) + b'"y",' * MB + b"1")),
    "numbers of two bytes": lambda: over_http(in_json(b"1," * (3 * MB) + b"1")),
    "numbers of four bytes": lambda: over_http(in_json(b"0.5," * (2 * MB) + b"1")),
    "lists in lists": lambda: over_http(in_json(b"[[[[]]]]," * MB + b"1")),
    "zeros in gzip": lambda: over_http(gzip.compress(bytes(200 * MB), 1), Content_Encoding="gzip"),
    "lists in gzip": lambda: over_http(gzip.compress(in_json(b"[]," * (6 * MB) + b"1"), 1), Content_Encoding="gzip"),
    "a name of 24 MB": lambda: over_http(b'{"inputs": [{"name": "%s"}]}' % (b"x" * (24 * MB))),
    "a shape of 6 MB": lambda: over_http(b'{"inputs": [{"name": "features", "shape": [%s1]}]}' % (b"1," * (3 * MB))),
    "empty inputs over gRPC": lambda: over_grpc(b"\x2a\x00" * (MB // 2)),
    "empty bytes over gRPC": lambda: over_grpc(b"\x3a\x00" * (MB // 2)),
    "empty parameters inside inputs over gRPC": lambda: over_grpc(b"\x2a\x80\x89\x7a" + b"\x22\x00" * MB),
    "empty outputs' parameters over gRPC": lambda: over_grpc(b"\x32\x80\x89\x7a" + b"\x12\x00" * MB),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_request_takes_more_memory_than_it_counts_for(served: Served, name: str) -> None:
    attack = ATTACKS[name]()
    with ThreadPoolExecutor(N) as pool:
        statuses = list(pool.map(lambda _: attack(served), range(N)))
    assert set(statuses) <= {400, 413, 503}
    grown = served.memory_mb("VmHWM") - served.idle_mb
    print(f"{name}: {grown:.0f} MB at most until now, {sorted(set(statuses))}")  # noqa: T201
    assert grown <= RATIO * LIMIT_MB
    assert httpx.get(served.url + "/v2/health/live").status_code == 200
