"""A server under damaged requests: ``python -m benchmarks.fuzz_http --requests 1000000``.

Connections carry many requests in a row, whole or in odd pieces: scores of one step and of three, health checks, and
the same with bytes of their JSON changed, lost or doubled while their length stays true. Two connections in five end in
a request whose head is damaged. Every request before that must be answered, in order; every score must be that of the
features which its own request sent; nothing may hang, and the server's log may hold no trace.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.measure.rows import Results
from vsum_runtime.runtime import Summarizer

DIM = 1280
INFER = "/v2/models/default/infer"
PER_CONNECTION = 40
HUNG_S = 30.0
PACKAGES = ("vsum-runtime", "onnxruntime", "uvicorn", "httptools", "starlette", "numpy")
MUST_BE_0 = ("wrong", "unanswered", "hung", "traces in the log")


class Fuzz:
    """One server, and the clients that send to it."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._seed = port, seed
        self.counts: Counter[str] = Counter(dict.fromkeys(MUST_BE_0, 0))
        self._lock = threading.Lock()
        draws = np.random.default_rng(seed)
        self._features = {n: draws.random((n, DIM), dtype=np.float32) for n in (1, 3)}
        with Summarizer(n_threads=1) as summarizer:
            self._scores = {n: summarizer.score([rows])[0] for n, rows in self._features.items()}

    def run(self, n_requests: int, n_clients: int) -> None:
        threads = [
            threading.Thread(target=self._client, args=(number, n_requests // n_clients)) for number in range(n_clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, n_requests: int) -> None:
        draw = random.Random(1000 * self._seed + number)
        sent = 0
        while sent < n_requests:
            counts = self._connection(draw, f"{number}.{sent}")
            sent += counts["requests"]
            with self._lock:
                self.counts.update(counts)

    def _connection(self, draw: random.Random, name: str) -> Counter[str]:
        """One connection; what came of its requests."""
        asked = [self._request(draw, f"{name}.{k}") for k in range(PER_CONNECTION)]
        data = b"".join(request for request, _ in asked)
        counts: Counter[str] = Counter(requests=len(asked))
        if draw.random() < 0.4:
            last, _ = self._request(draw, f"{name}.last")
            data += _damaged(draw, last, last.index(b"\r\n\r\n") + 4)
            counts["requests"] += 1
            counts["heads damaged"] += 1
        data += b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        try:
            answers = self._exchange(draw, data)
        except TimeoutError:
            counts["hung"] += 1
            return counts
        for (_, n_steps), (status, body, json_length) in zip(asked, answers, strict=False):
            counts["answered with 200" if status == 200 else "refused"] += 1
            if status == 200 and n_steps and not self._is_right(body, json_length, n_steps):
                counts["wrong"] += 1
        counts["unanswered"] += max(0, len(asked) - len(answers))
        return counts

    def _is_right(self, body: bytes, json_length: int, n_steps: int) -> bool:
        scores = np.frombuffer(body[json_length:], "<f4")
        if not len(scores):  # what asked for bytes was damaged
            scores = np.array(json.loads(body[:json_length])["outputs"][0].get("data", []), dtype=np.float32)
        return scores.shape == (n_steps,) and bool(np.abs(scores - self._scores[n_steps]).max() < 1e-6)

    def _request(self, draw: random.Random, name: str) -> tuple[bytes, int]:
        """A request whose framing is right, and the steps it asks scores of (0: none)."""
        kind = draw.random()
        if kind < 0.6:
            path = draw.choice(("/v2/health/live", "/v2/models/default", "/nothing", "/v2/models/default/stats"))
            return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 0
        n_steps = draw.choice((1, 3))
        values = self._features[n_steps]
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, n_steps, DIM]}
        tensor["parameters"] = {"binary_data_size": values.nbytes}
        head = json.dumps({"id": name, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        if kind < 0.9:
            head = _damaged(draw, head, len(head))
        lines = ["Host: localhost", f"Inference-Header-Content-Length: {len(head)}"]
        lines += draw.choice(([], ["Connection: Upgrade", "Upgrade: h2c"]))
        body = head + values.tobytes()
        first = "\r\n".join([f"POST {INFER} HTTP/1.1", *lines, f"Content-Length: {len(body)}", "", ""])
        return first.encode() + body, n_steps

    def _exchange(self, draw: random.Random, data: bytes) -> list[tuple[int, bytes, int]]:
        """Send, and read (status, body, length of its JSON) of each answer until the server closes."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=HUNG_S) as wire:
            cut = draw.randrange(len(data)) if draw.random() < 0.5 else 0

            def send() -> None:
                with suppress(OSError):  # the server may close before it has read everything
                    wire.sendall(data[:cut])
                    wire.sendall(data[cut:])

            sending = threading.Thread(target=send)
            sending.start()
            received = bytearray()
            with suppress(ConnectionResetError):
                while part := wire.recv(1 << 18):
                    received += part
            sending.join()
        return _answers(bytes(received))


def _damaged(draw: random.Random, data: bytes, end: int) -> bytes:
    """With a byte before `end` changed, lost or doubled."""
    at = draw.randrange(end)
    how = draw.randrange(3)
    if how == 0:
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    return data[:at] + data[at + 1 :] if how == 1 else data[: at + 1] + data[at:]


def _answers(data: bytes) -> list[tuple[int, bytes, int]]:
    answers, at = [], 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        first, *lines = data[at:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start, length = end + 4, int(headers.get("content-length", 0))
        answers.append(
            (
                int(first.split()[1]),
                data[start : start + length],
                int(headers.get("inference-header-content-length", length)),
            )
        )
        at = start + length
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args()
    results = Results("python -m benchmarks.fuzz_http", PACKAGES, args.out)
    command = [sys.executable, "-m", "vsum_runtime.runtime.serve", "--port", "0"]
    command += ["--header-timeout-s", "0.3", "--body-timeout-s", "0.3"]  # a lost byte is waited for so long
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if b"listening on" in line)
        port = int(line.split()[-1].rstrip(b'"}').decode().rsplit(":", 1)[1])
        fuzz = Fuzz(port, args.seed)
        log = threading.Thread(target=_read_log, args=(server.stderr, fuzz.counts), daemon=True)
        log.start()
        began = time.monotonic()
        fuzz.run(args.requests, args.clients)
        took_s = time.monotonic() - began
        peak = next(
            1024 * int(line.split()[1])
            for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        server.terminate()
        code = server.wait(60)
        log.join(10)
    where = "fuzz", f"{args.clients} clients, seed {args.seed}", "HTTP"
    for kind in [*MUST_BE_0, *sorted(fuzz.counts.keys() - set(MUST_BE_0))]:
        results.add(*where, [fuzz.counts[kind]], metric=kind, unit="")
    results.add(*where, [fuzz.counts["requests"] / took_s], metric="rate", unit="requests/s")
    results.add(*where, [peak], metric="peak memory of the server", unit="B")
    return int(code != 0 or any(fuzz.counts[kind] for kind in MUST_BE_0))


def _read_log(log: object, counts: Counter[str]) -> None:
    for line in log:  # type: ignore[attr-defined]
        if b"Traceback" in line or b'"level": "critical"' in line or b'"level": "error"' in line:
            counts["traces in the log"] += 1
            sys.stderr.write(line.decode(errors="replace")[-2000:])


if __name__ == "__main__":
    sys.exit(main())
