"""What does the server cost, what does it carry, and does it lose anything?

    python -m benchmarks.serving --out benchmarks/results/serving.json
    python -m benchmarks.serving --triton-python TRITON/bin/python --out benchmarks/results/serving.json

The server is a process of its own on loopback; the clients are this process, so on a small machine they take cores from
the server, as their row says. Questions, on the default model where no other is named:

one client      T = 320, features as bytes over HTTP and gRPC or in shared memory, against calling the runtime in this
                process; all take turns. The server has as many threads a call as the runtime, or one, its default
64 clients      ragged videos without pause, against the runtime at its best (a caller for each processor, one thread a
                call) and against a real Triton server (``nvidia-pytriton``, in an environment of its own) whose Python
                model calls the same ONNX file in the same way; Triton merges only requests of equal length. All take
                turns, three times. Beside videos a second stands the processor time of one video: it does not count
                the clients, and tells what would be left of the runtime's throughput were they on another machine.
                Features lie in shared memory before the clock starts, as they lie in requests that are sent
heavy           the same load on PGL-SUM (random weights, D = 1024), exported here: of all models the default one
                computes least for every byte it is sent, this one stands for those whose scoring outweighs their bytes
faults          ragged requests from 64 clients, some cancelled, some with a timeout too short; every answer is compared
                with the scores of its own video
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.measure.rows import ROOT, Results
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.backends.ort import cpu_count
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE

COMMAND = "python -m benchmarks.serving --triton-python TRITON/bin/python"
PACKAGES = ("vsum-runtime", "onnxruntime", "uvicorn", "starlette", "numpy")
PATH = "/v2/models/default/infer"
CLIENTS = 64
_PARTS = ("latency", "load", "heavy", "faults")


@dataclass(frozen=True)
class Video:
    """One request as it goes over the wire, and the answer it must get."""

    features: np.ndarray
    scores: np.ndarray
    place: dict[str, Any] | None = None
    """Parameters that say where in shared memory the features lie; None: they are sent."""

    def request(self, number: int, timeout_us: int = 0) -> bytes:
        shape = [1, *self.features.shape]
        tensor = {"name": "features", "datatype": "FP32", "shape": shape}
        tensor["parameters"] = self.place or {"binary_data_size": self.features.nbytes}
        body = b"" if self.place else self.features.tobytes()
        parameters: dict[str, Any] = {"binary_data_output": True}
        if timeout_us:
            parameters["timeout"] = timeout_us
        head = json.dumps({"id": str(number), "inputs": [tensor], "parameters": parameters}).encode()
        first = (
            f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(body)}\r\n\r\n"
        )
        return first.encode() + head + body

    def message(self, number: int) -> bytes:
        """The same for gRPC."""
        from tritonclient.grpc.service_pb2 import ModelInferRequest

        made = ModelInferRequest(model_name="default", id=str(number))
        tensor = made.inputs.add(name="features", datatype="FP32", shape=[1, *self.features.shape])
        if self.place is None:
            made.raw_input_contents.append(self.features.tobytes())
        for name, value in (self.place or {}).items():
            setattr(tensor.parameters[name], "string_param" if isinstance(value, str) else "int64_param", value)
        return made.SerializeToString()


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

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class GrpcClient:
    """gRPC on a connection of its own; the request is serialized beforehand."""

    def __init__(self, port: int) -> None:
        import grpc

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._call = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    async def ask(self, request: bytes) -> Answer:
        from tritonclient.grpc.service_pb2 import ModelInferResponse

        answer = ModelInferResponse.FromString(await self._call(request))
        return Answer(200, answer.id, np.frombuffer(answer.raw_output_contents[0], "<f4"))

    async def close(self) -> None:
        await self._channel.close()


@dataclass(frozen=True)
class Served:
    """A server: its ports, and its process with all children."""

    port: int
    grpc_port: int
    pid: int

    def cpu_s(self) -> float:
        """Processor time used until now."""
        parents, times = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rsplit(")", 1)[1].split()
                parents[int(stat.parent.name)] = int(fields[1])
                times[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        family = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return sum(times[pid] for pid in family)


@contextmanager
def our_server(*settings: str) -> Iterator[Served]:
    """A server with its default settings but for those given."""
    command = [
        sys.executable,
        "-m",
        "vsum_runtime.runtime.serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--log-level",
        "warning",
    ]
    with tempfile.TemporaryFile() as said, subprocess.Popen([*command, *settings], cwd=ROOT, stderr=said) as process:
        try:
            yield Served(*_ports_of(process.pid), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _ports_of(pid: int) -> tuple[int, int]:
    """The ports of HTTP and gRPC a process listens on, once it is ready there."""
    for _ in range(600):
        inodes = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with_name = os.readlink(link) if link.is_symlink() else ""
            if with_name.startswith("socket:["):
                inodes.add(with_name[8:-1])
        tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()[1:]]
        ports = {int(line[1].split(":")[1], 16) for line in lines if line[3] == "0A" and line[9] in inodes}
        for port in ports:
            if len(ports) == 2:
                with suppress(OSError, HTTPException):
                    urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1)
                    return port, (ports - {port}).pop()
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


@contextmanager
def triton_server(python: Path, graph: Path, workers: int) -> Iterator[Served]:
    """A real Triton server with the same ONNX file."""
    port = 18100
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
            yield Served(port, port + 1, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def videos(summarizer: Summarizer, lengths: list[int]) -> list[Video]:
    draws = np.random.default_rng(0)
    features = [draws.random((n, summarizer.bundle.feature_dim), dtype=np.float32) for n in lengths]
    return [Video(rows, scores) for rows, scores in zip(features, summarizer.score(features), strict=True)]


@contextmanager
def in_shared_memory(load: list[Video], served: Served) -> Iterator[list[Video]]:
    """The same videos in one region that this server knows."""
    ends = list(itertools.accumulate(video.features.nbytes for video in load))
    memory = SharedMemory(create=True, size=ends[-1])
    try:
        places = []
        for video, end in zip(load, ends, strict=True):
            size = video.features.nbytes
            memory.buf[end - size : end] = video.features.tobytes()
            parameters = {"region": memory.name, "offset": end - size, "byte_size": size}
            places.append({f"shared_memory_{name}": value for name, value in parameters.items()})
        region = json.dumps({"key": f"/{memory.name}", "offset": 0, "byte_size": ends[-1]}).encode()
        urlopen(f"http://127.0.0.1:{served.port}/v2/systemsharedmemory/region/{memory.name}/register", region)
        yield [replace(video, place=place) for video, place in zip(load, places, strict=True)]
    finally:
        memory.close()
        memory.unlink()


async def one_client(results: Results, summarizer: Summarizer, name: str, served: Served, n: int) -> None:
    video = videos(summarizer, [320])[0]
    with in_shared_memory([video], served) as (shared,):
        clients: dict[str, tuple[Client | GrpcClient, bytes]] = {
            "HTTP": (Client(served.port), video.request(1)),
            "gRPC": (GrpcClient(served.grpc_port), video.message(1)),
            "HTTP, shared memory": (Client(served.port), shared.request(1)),
            "gRPC, shared memory": (GrpcClient(served.grpc_port), shared.message(1)),
        }
        taken: dict[str, list[float]] = {"runtime": [], **{kind: [] for kind in clients}}
        for _ in range(n + 20):
            began = time.perf_counter()
            summarizer.score([video.features])
            taken["runtime"].append(time.perf_counter() - began)
            for kind, (client, request) in clients.items():
                began = time.perf_counter()
                answer = await client.ask(request)
                taken[kind].append(time.perf_counter() - began)
                np.testing.assert_allclose(answer.scores, video.scores, atol=1e-5)
        for client, _ in clients.values():
            await client.close()
    what = f"one client, T = 320, {name}"
    direct = taken.pop("runtime")[20:]
    results.add(what, "", "runtime, in process", direct, metric="latency")
    for kind, values in taken.items():
        over_ms = 1e3 * (statistics.median(values[20:]) - statistics.median(direct))
        note = f"{over_ms:+.2f} ms over the runtime"
        results.add(what, "", f"server, {kind}", values[20:], metric="latency", note=note)


@dataclass
class Load:
    """What one implementation did in its turns."""

    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of one video, without its client."""
    client_cores: list[float] = field(default_factory=list)
    refused: int = 0


def runtime_turn(done: Load, summarizer: Summarizer, load: list[Video], seconds: float, n_threads: int) -> None:
    """The runtime's own throughput: threads that call it without pause."""
    until = time.perf_counter() + seconds

    turn = itertools.count()  # all take the same videos in the same order

    def work(_: int) -> int:
        n = 0
        while time.perf_counter() < until:
            summarizer.score([load[next(turn) % len(load)].features])
            n += 1
        return n

    with ThreadPoolExecutor(n_threads) as pool:
        began, cpu = time.perf_counter(), time.process_time()
        n = sum(pool.map(work, range(n_threads)))
        done.rates.append(n / (time.perf_counter() - began))
        done.cpu_s.append((time.process_time() - cpu) / n)


async def server_turn(done: Load, served: Served, load: list[Video], seconds: float, *, grpc: bool) -> None:
    """64 clients that ask without pause, each answer checked."""
    requests = [video.message(i) if grpc else video.request(i) for i, video in enumerate(load)]
    begin = time.perf_counter()
    until, n = begin + seconds, 0
    turn = itertools.count()

    async def work() -> None:
        nonlocal n
        client = GrpcClient(served.grpc_port) if grpc else Client(served.port)
        while time.perf_counter() < until:
            i = next(turn) % len(load)
            began = time.perf_counter()
            answer = await client.ask(requests[i])
            if answer.status == 200:
                assert np.abs(answer.scores - load[i].scores).max() <= 1e-5
                done.latencies_s.append(time.perf_counter() - began)
                n += 1
            else:
                done.refused += 1
        await client.close()

    cpu, own = served.cpu_s(), time.process_time()
    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    took = time.perf_counter() - begin
    done.rates.append(n / took)
    done.cpu_s.append((served.cpu_s() - cpu) / n)
    done.client_cores.append((time.process_time() - own) / took)


def exported(name: str, folder: Path) -> Path:
    """A bundle of that architecture with random weights and D = 1024."""
    import torch

    from vsum_runtime.export.convert import ExportConfig, export
    from vsum_runtime.training import models
    from vsum_runtime.training.checkpoint import save_checkpoint

    torch.manual_seed(0)
    model = models.build(name, feature_dim=1024)
    nothing = dict.fromkeys(("splits", "split"))
    about: dict[str, Any] = {
        "model": name,
        "options": model.options,
        "feature_dim": 1024,
        "feature_norm": "l2",
        "dataset": {"name": "none", "sha256": "0", "recipe": ""},
        "seed": 0,
        "epoch": 0,
        "selection": {"rule": "last", "value": None},
    }
    save_checkpoint(folder / "model.safetensors", model, about | nothing)
    export(ExportConfig(checkpoint=folder / "model.safetensors", out=folder / "bundle", features="none"))
    return folder / "bundle"


def saturated(results: Results, what: str, bundle: Path, seconds: float, triton_python: Path | None, run: Any) -> None:
    """The load of 64 clients on every implementation, in turns of a third of the time each."""
    n_cores, draws = cpu_count(), random.Random(0)
    names = ["runtime, in process", "server, HTTP", "server, gRPC"]
    with ExitStack() as stack:
        single = stack.enter_context(Summarizer(bundle, n_threads=1))
        load = videos(single, [draws.randint(40, 600) for _ in range(48)])
        servers = {"server": stack.enter_context(our_server("--bundle", f"default={bundle}", "--shared-memory"))}
        shared = stack.enter_context(in_shared_memory(load, servers["server"]))
        if bundle == DEFAULT_BUNDLE:
            names += ["server, HTTP, shared memory", "server, gRPC, shared memory", "server --isolate, HTTP"]
            servers["server --isolate"] = stack.enter_context(our_server("--isolate"))
        if triton_python:
            names.append("Triton, HTTP")
            graph = bundle / "scorer.onnx"
            servers["Triton"] = stack.enter_context(triton_server(triton_python, graph, n_cores))
        loads = {name: Load() for name in names}
        for _ in range(3):
            for name, done in loads.items():
                if name.startswith("runtime"):
                    runtime_turn(done, single, load, seconds / 3, n_cores)
                else:
                    who, kind, *memory = name.split(", ")
                    asked = shared if memory else load
                    run(server_turn(done, servers[who], asked, seconds / 3, grpc=kind == "gRPC"))
    load_rows(results, what, loads)


def load_rows(results: Results, what: str, loads: dict[str, Load]) -> None:
    """Throughput, processor time and latency; shares are medians of the turns, each against the runtime's own turn."""
    alone = loads["runtime, in process"]
    for name, done in loads.items():
        note = ""
        if done.client_cores:
            share = statistics.median(a / b for a, b in zip(done.rates, alone.rates, strict=True))
            cores = statistics.median(done.client_cores)
            note = f"{share:.0%} of the runtime's; clients take {cores:.2f} cores; {done.refused} refused"
        results.add(what, "", name, done.rates, metric="throughput", unit="videos/s", note=note)
        share = statistics.median(b / a for a, b in zip(done.cpu_s, alone.cpu_s, strict=True))
        note = f"{share:.0%} of it is what the runtime takes" if done.client_cores else ""
        results.add(what, "", name, done.cpu_s, metric="processor time", note=note)
        if done.latencies_s:
            p99, longest = np.quantile(done.latencies_s, 0.99), max(done.latencies_s)
            note = f"p99 {1e3 * p99:.0f} ms, longest {1e3 * longest:.0f} ms"
            results.add(what, "", name, done.latencies_s, metric="latency", note=note)


async def faults(results: Results, port: int, pid: int, load: list[Video], n: int) -> None:
    """Cancel one request of ten, give one of five a timeout that may be too short, and check every answer."""
    left = iter(range(n))
    outcomes: Counter[str] = Counter()
    memory = [_memory_bytes(pid)]

    async def work(seed: int) -> None:
        draws, client = random.Random(seed), Client(port)
        for number in left:
            if number % 500 == 499:
                memory.append(_memory_bytes(pid))
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
            except (TimeoutError, OSError, EOFError):
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
    memory.append(_memory_bytes(pid))
    what = f"faults, {n} requests"
    note = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    half = len(memory) // 2
    where = what, "", "server, HTTP"
    results.add(*where, [float(sum(outcomes.values()))], metric="requests accounted for", unit="", note=note)
    starts, ends = f"starts at {memory[0] / 1e6:.0f} MB", f"ends at {memory[-1] / 1e6:.0f} MB"
    results.add(*where, memory[:half], metric="memory, first half", unit="B", note=starts)
    results.add(*where, memory[half:], metric="memory, second half", unit="B", note=ends)
    results.add(*where, [float(waiting.split()[-1])], metric="requests waiting at the end", unit="")


def _memory_bytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a smoke run: too short for numbers")
    parser.add_argument("--triton-python", type=Path, help="python of an environment with nvidia-pytriton")
    parser.add_argument("--part", action="append", choices=_PARTS, help="only this")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update; not with --quick")
    args = parser.parse_args(argv)
    seconds, n_single, n_faults = (2.0, 30, 300) if args.quick else (15.0, 300, 10_000)
    draws = random.Random(0)
    with Summarizer() as summarizer:
        results = Results(COMMAND, PACKAGES, None if args.quick else args.out)
        run = asyncio.run
        with suppress(ImportError):  # lighter clients
            import uvloop

            run = uvloop.run
        n_cores = cpu_count()
        parts = args.part or _PARTS
        if "latency" in parts:
            with our_server("--threads", str(n_cores), "--shared-memory") as served:
                run(one_client(results, summarizer, f"{n_cores} threads a call", served, n_single))
            with our_server("--shared-memory") as served, Summarizer(n_threads=1) as single:
                run(one_client(results, single, "one thread a call, the default", served, n_single))
        if "load" in parts:
            saturated(results, f"{CLIENTS} clients, ragged", DEFAULT_BUNDLE, seconds, args.triton_python, run)
        if "heavy" in parts:
            with tempfile.TemporaryDirectory() as folder:
                bundle = exported("pgl_sum", Path(folder))
                what = f"{CLIENTS} clients, ragged, PGL-SUM"
                saturated(results, what, bundle, 1.5 * seconds, args.triton_python, run)
        if "faults" in parts:
            with our_server() as served:
                load = videos(summarizer, [draws.randint(40, 600) for _ in range(48)])
                run(faults(results, served.port, served.pid, load, n_faults))
    return 0


if __name__ == "__main__":
    sys.exit(main())
