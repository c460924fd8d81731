"""What does the server cost, what does it carry, and does it lose anything?

    python -m benchmarks.serving --out benchmarks/results/serving.json
    python -m benchmarks.serving --triton-python TRITON/bin/python --out benchmarks/results/serving.json

The server is a process of its own on loopback; the clients are this process, so on a small machine they take cores from
the server, as their row says. Three questions, on the default model:

one client      T = 320, features as bytes, against calling the runtime in this process; the two take turns. The server
                has as many threads a call as the runtime, or one, its default
64 clients      ragged videos without pause, against the runtime at its best (a caller for each processor, one thread a
                call) and against a real Triton server (``nvidia-pytriton``, in an environment of its own) whose Python
                model calls the same ONNX file in the same way; Triton merges only requests of equal length
faults          ragged requests from 64 clients, some cancelled, some with a timeout too short; every answer is compared
                with the scores of its own video
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from runtime import Summarizer
from runtime.backends.ort import cpu_count

ROOT = Path(__file__).resolve().parent.parent
PATH = "/v2/models/default/infer"
CLIENTS = 64


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    implementation: str
    metric: str
    unit: str
    p20: float
    p50: float
    p80: float
    note: str = ""


@dataclass(frozen=True)
class Video:
    """One request as it goes over the wire, and the answer it must get."""

    features: np.ndarray
    scores: np.ndarray

    def request(self, number: int, timeout_us: int = 0) -> bytes:
        shape = [1, *self.features.shape]
        tensor = {"name": "features", "datatype": "FP32", "shape": shape}
        tensor["parameters"] = {"binary_data_size": self.features.nbytes}
        parameters: dict[str, Any] = {"binary_data_output": True}
        if timeout_us:
            parameters["timeout"] = timeout_us
        head = json.dumps({"id": str(number), "inputs": [tensor], "parameters": parameters}).encode()
        size = len(head) + self.features.nbytes
        first = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {size}\r\n\r\n"
        )
        return first.encode() + head + self.features.tobytes()


@dataclass(frozen=True)
class Answer:
    status: int
    id: str
    scores: np.ndarray


class Client:
    """HTTP on one connection, with as little work of its own as can be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        status = int(lines[0].split()[1])
        if status != 200:
            assert json.loads(body)["error"]
            return Answer(status, "", np.empty(0))
        length = int(headers["inference-header-content-length"])
        return Answer(status, json.loads(body[:length]).get("id", ""), np.frombuffer(body[length:], "<f4"))

    def drop(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


@contextmanager
def our_server(*settings: str) -> Iterator[tuple[int, int]]:
    """Port and process id of a server, with its default settings but for those given."""
    command = [sys.executable, "-m", "runtime.serve", "--port", "0", "--log-level", "warning", *settings]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, cwd=ROOT, stderr=said) as process:
        try:
            yield _port_of(process.pid), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _port_of(pid: int) -> int:
    """The port a process listens on, once it is ready there."""
    for _ in range(600):
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with_name = os.readlink(link) if link.is_symlink() else ""
            if with_name.startswith("socket:["):
                inodes.add(with_name[8:-1])
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                port = int(fields[1].split(":")[1], 16)
                try:
                    urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1)
                except OSError:
                    continue
                return port
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


@contextmanager
def triton_server(python: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Port and process id of a real Triton server with the same ONNX file."""
    port = 18100
    graph = ROOT / "runtime" / "default_model" / "scorer.onnx"
    command = [str(python), str(ROOT / "benchmarks" / "triton_peer.py"), str(graph), str(port), str(workers)]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            for _ in range(600):
                try:
                    urlopen(f"http://127.0.0.1:{port}/v2/models/default/ready", timeout=1)
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                said.seek(0)
                raise RuntimeError(f"Triton did not become ready: {said.read()[-2000:]!r}")
            yield port, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def videos(summarizer: Summarizer, lengths: list[int]) -> list[Video]:
    draws = np.random.default_rng(0)
    features = [draws.random((n, summarizer.bundle.feature_dim), dtype=np.float32) for n in lengths]
    return [Video(rows, scores) for rows, scores in zip(features, summarizer.score(features), strict=True)]


def row(what: str, implementation: str, values: list[float], metric: str, unit: str, note: str = "") -> Row:
    p20, p50, p80 = (float(np.quantile(values, q)) for q in (0.2, 0.5, 0.8))
    made = Row(what, implementation, metric, unit, p20, p50, p80, note)
    print(f"{what}: {implementation}: {metric} {p50:.4g} {unit} {note}", file=sys.stderr)
    return made


async def one_client(summarizer: Summarizer, name: str, port: int, n: int) -> list[Row]:
    video = videos(summarizer, [320])[0]
    client = Client(port)
    request = video.request(1)
    direct, served = [], []
    for i in range(n + 20):
        began = time.perf_counter()
        summarizer.score([video.features])
        middle = time.perf_counter()
        answer = await client.ask(request)
        ended = time.perf_counter()
        np.testing.assert_allclose(answer.scores, video.scores, atol=1e-5)
        if i >= 20:
            direct.append((middle - began) * 1e3)
            served.append((ended - middle) * 1e3)
    client.drop()
    what = "one client, T = 320"
    over = statistics.median(served) - statistics.median(direct)
    return [
        row(what, "runtime, in process", direct, "latency", "ms"),
        row(what, name, served, "latency", "ms", f"{over:+.2f} ms over the runtime"),
    ]


def runtime_alone(summarizer: Summarizer, load: list[Video], seconds: float, n_threads: int) -> Row:
    """The runtime's own throughput: threads that call it without pause."""
    rates = []
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(3):
            until = time.perf_counter() + seconds / 3

            def work(seed: int, until: float = until) -> int:
                draws, done = random.Random(seed), 0
                while time.perf_counter() < until:
                    summarizer.score([draws.choice(load).features])
                    done += 1
                return done

            began = time.perf_counter()
            rates.append(sum(pool.map(work, range(n_threads))) / (time.perf_counter() - began))
    return row(
        f"{CLIENTS} clients, ragged", "runtime, in process", rates, "throughput", "videos/s", f"{n_threads} callers"
    )


async def many_clients(name: str, port: int, load: list[Video], seconds: float) -> list[Row]:
    requests = [video.request(i) for i, video in enumerate(load)]
    latencies, moments, outcomes = [], [], Counter()
    begin = time.perf_counter()
    until = begin + seconds

    async def work(seed: int) -> None:
        draws, client = random.Random(seed), Client(port)
        while time.perf_counter() < until:
            i = draws.randrange(len(load))
            began = time.perf_counter()
            answer = await client.ask(requests[i])
            outcomes[answer.status] += 1
            if answer.status == 200:
                assert np.abs(answer.scores - load[i].scores).max() <= 1e-5
                latencies.append((time.perf_counter() - began) * 1e3)
                moments.append(time.perf_counter())
        client.drop()

    cpu = time.process_time()
    await asyncio.gather(*(work(seed) for seed in range(CLIENTS)))
    spent = (time.process_time() - cpu) / (time.perf_counter() - begin)
    thirds = np.histogram(moments, bins=3, range=(begin, until))[0] / (seconds / 3)
    what = f"{CLIENTS} clients, ragged"
    note = f"clients take {spent:.2f} cores; statuses {dict(outcomes)}"
    p99 = f"p99 {np.quantile(latencies, 0.99):.0f} ms, longest {max(latencies):.0f} ms"
    return [
        row(what, name, list(thirds), "throughput", "videos/s", note),
        row(what, name, latencies, "latency", "ms", p99),
    ]


async def faults(port: int, pid: int, load: list[Video], n: int) -> list[Row]:
    """Cancel one request of ten, give one of five a timeout that may be too short, and check every answer."""
    left = iter(range(n))
    outcomes: Counter[str] = Counter()
    memory_mb = [_memory_mb(pid)]

    async def work(seed: int) -> None:
        draws, client = random.Random(seed), Client(port)
        for number in left:
            if number % 500 == 499:
                memory_mb.append(_memory_mb(pid))
            video = draws.choice(load)
            timeout_us = draws.randint(1, 400_000) if draws.random() < 0.2 else 0
            asking = asyncio.ensure_future(client.ask(video.request(number, timeout_us)))
            if draws.random() < 0.1:
                await asyncio.wait({asking}, timeout=draws.random() * 0.3)
                if not asking.done():
                    asking.cancel()
                    await asyncio.wait({asking})
                    client.drop()
                    outcomes["cancelled by the client"] += 1
                    continue
            try:
                answer = await asyncio.wait_for(asking, 60)
            except (OSError, EOFError, asyncio.TimeoutError):
                outcomes["lost"] += 1
                client.drop()
                continue
            if answer.status != 200:
                outcomes[f"refused, {answer.status}"] += 1
            elif answer.id == str(number) and len(answer.scores) == len(video.scores):
                right = np.abs(answer.scores - video.scores).max() <= 1e-5
                outcomes["right" if right else "wrong scores"] += 1
            else:
                outcomes["mixed up"] += 1
        client.drop()

    await asyncio.gather(*(work(seed) for seed in range(CLIENTS)))
    await asyncio.sleep(0.5)
    statuses = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    waiting = next(line for line in statuses.splitlines() if line.startswith("nv_inference_pending_request_count{"))
    memory_mb.append(_memory_mb(pid))
    what = f"faults, {n} requests"
    note = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    half = len(memory_mb) // 2
    return [
        row(what, "server, HTTP", [float(sum(outcomes.values()))], "requests accounted for", "", note),
        row(what, "server, HTTP", memory_mb[:half], "memory, first half", "MB", f"starts at {memory_mb[0]:.0f}"),
        row(what, "server, HTTP", memory_mb[half:], "memory, second half", "MB", f"ends at {memory_mb[-1]:.0f}"),
        row(what, "server, HTTP", [float(waiting.split()[-1])], "requests waiting at the end", ""),
    ]


def _memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def table(rows: list[Row]) -> str:
    lines = ["| what | implementation | metric | p20 | p50 | p80 | |", "| --- | --- | --- | ---: | ---: | ---: | --- |"]
    for r in rows:
        values = " | ".join(f"{value:.4g}" for value in (r.p20, r.p50, r.p80))
        metric = f"{r.metric}, {r.unit}" if r.unit else r.metric
        lines.append(f"| {r.what} | {r.implementation} | {metric} | {values} | {r.note} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a smoke run: too short for numbers")
    parser.add_argument("--triton-python", type=Path, help="python of an environment with nvidia-pytriton")
    parser.add_argument("--out", type=Path, help="JSON to write, and the table as .md beside it")
    args = parser.parse_args(argv)
    seconds, n_single, n_faults = (2.0, 30, 300) if args.quick else (15.0, 300, 10_000)
    workers = cpu_count()
    draws = random.Random(0)
    with Summarizer() as summarizer:
        load = videos(summarizer, [draws.randint(40, 600) for _ in range(48)])
        rows = []

        def keep() -> None:
            if args.out:
                machine = {"processor": _processor(), "cores": cpu_count(), "python": platform.python_version()}
                names = ("vsum-runtime", "onnxruntime", "uvicorn", "starlette", "numpy")
                versions = {name: metadata.version(name) for name in names}
                found = {"machine": machine, "versions": versions, "rows": [asdict(r) for r in rows]}
                args.out.write_text(json.dumps(found, indent=1) + "\n")
                args.out.with_suffix(".md").write_text(table(rows))

        with our_server("--threads", str(cpu_count())) as (port, _):
            rows += asyncio.run(one_client(summarizer, f"server, HTTP, threads = {cpu_count()}", port, n_single))
        with our_server() as (port, pid):
            rows += asyncio.run(one_client(summarizer, "server, HTTP, threads = 1", port, n_single))
            with Summarizer(n_threads=1) as single:
                rows.append(runtime_alone(single, load, seconds, workers))
            rows += asyncio.run(many_clients("server, HTTP", port, load, seconds))
            keep()
            rows += asyncio.run(faults(port, pid, load, n_faults))
            keep()
        if args.triton_python:
            with triton_server(args.triton_python, workers) as (port, _):
                rows += asyncio.run(many_clients("Triton (pytriton 0.7.0)", port, load, seconds))
                keep()
    print(table(rows))
    return 0


def _processor() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(":")[2].strip() if found else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
