"""A server under load and under faults, for as long as wanted: ``python -m benchmarks.soak --minutes 20``.

Clients score, summarize features and videos, cancel, and go away; every answer is compared with an oracle, which is the
runtime itself, called before. Meanwhile scoring processes and those of videos are killed or stopped, the disk is filled
(where a small file system can be mounted, which takes root), and the server is killed or ended, and started again.
The counts are printed, those first that must be 0.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from benchmarks.measure.rows import Results
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.serve.job_store import FOLDER

GRACE_S = 20.0
HUNG_S = 90.0
KEEP_S = 5.0
DISK_KB = 8192
DIM = 1280
PACKAGES = ("vsum-runtime", "onnxruntime", "uvicorn", "starlette", "numpy")
FAULTS = ("kill-scoring", "stop-scoring", "kill-video", "kill-server", "end-server", "fill-disk")
MUST_BE_0 = ("wrong", "unexpected", "hung", "leaked", "late stop")


class Soak:
    """One server, the clients and the faults around it."""

    def __init__(self, state: Path, *, has_small_disk: bool, seed: int) -> None:
        self._state, self._has_small_disk, self._seed = state, has_small_disk, seed
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.most_rss_mb = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._url = ""
        self._lives = 0
        self._server: subprocess.Popen[bytes] | None = None
        draws = np.random.default_rng(seed)
        self._features = [draws.random((n, DIM), dtype=np.float32) for n in (1, 7, 60, 320, 900)]
        self._film = _film()
        path = state.parent / "oracle.mp4"
        path.write_bytes(self._film)
        with Summarizer(n_threads=1) as summarizer:
            self._scores = summarizer.score(self._features)
            self._summaries = [summarizer.summarize_features(rows).to_dict() for rows in self._features]
            self._film_summary = summarizer.summarize(path).to_dict()
        path.unlink()

    def run(self, minutes: float, n_clients: int, only: str | None = None) -> None:
        self._start()
        threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(n_clients)]
        for thread in threads:
            thread.start()
        until, faults = time.monotonic() + 60 * minutes, random.Random(self._seed)
        by_name = {
            "kill-scoring": self._kill_scoring,
            "stop-scoring": self._stop_scoring,
            "kill-video": self._kill_video,
            "kill-server": self._kill_server,
            "end-server": self._end_server,
        }
        if self._has_small_disk:
            by_name["fill-disk"] = self._fill_disk
        if only and only not in by_name:
            raise SystemExit(f"--only {only}: takes a small file system, which this user may not mount")
        kinds: list[Callable[[], None]] = [by_name[only]] if only else list(by_name.values())
        order: list[Callable[[], None]] = []
        while time.monotonic() < until:
            order = order or faults.sample(kinds, len(kinds))
            time.sleep(faults.uniform(2, 6))
            order.pop()()
            self._look_at_memory()
        self._stop.set()
        for thread in threads:
            thread.join()
        for _ in range(int(HUNG_S)):  # jobs that were accepted and left end, and go when their time is over
            left = [path for path in (self._state / FOLDER).iterdir() if path.name != "lock"]
            if not left:
                break
            time.sleep(1)
        self._count("leaked", len(left), str(left[:3]))
        self._end_server(start_again=False)
        orphans = [pid for pid in _processes("vsum_runtime.runtime.serve") if pid != os.getpid()]
        self._count("leaked", len(orphans), f"processes {orphans}")

    # The server and its faults

    def _start(self) -> None:
        command = [sys.executable, "-m", "vsum_runtime.runtime.serve", "--port", "0", "--isolate", "--workers", "2"]
        command += ["--state-dir", str(self._state), "--call-timeout-s", "6", "--timeout-s", "20"]
        command += ["--grace-s", str(GRACE_S), "--keep-s", str(KEEP_S), "--max-jobs", "6"]
        self._server = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._server.stderr is not None
        lines = []
        for line in self._server.stderr:
            lines.append(line.decode())
            if b"listening on" in line:
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(lines[-40:]))
        threading.Thread(target=self._read_log, args=(self._server.stderr,), daemon=True).start()
        self._url, self._lives = line.split()[-1].rstrip(b'"}').decode(), self._lives + 1

    def _read_log(self, log: Any) -> None:
        for line in log:
            if b'"level": "critical"' in line or b"Traceback" in line:
                self._count("unexpected", 1, line.decode()[-2000:])

    def _kill_server(self) -> None:
        assert self._server is not None
        self._url = ""
        self._server.kill()
        self._server.wait()
        self._count("kills of the server")
        time.sleep(0.5)
        orphans = [pid for pid in _processes("vsum_runtime.runtime.serve") if pid != os.getpid()]
        self._count("leaked", len(orphans), f"processes {orphans} of a killed server")
        self._start()

    def _end_server(self, start_again: bool = True) -> None:
        assert self._server is not None
        self._url = ""
        began = time.monotonic()
        self._server.terminate()
        code = self._server.wait()
        self._count("SIGTERM to the server")
        if code or time.monotonic() - began > GRACE_S + 0.5:
            self._count("late stop", 1, f"exit code {code} after {time.monotonic() - began:.1f} s")
        if start_again:
            self._start()

    def _kill_scoring(self) -> None:
        for pid in _processes("serve.isolated")[:1]:
            _signal(pid, signal.SIGKILL)
            self._count("kills of scoring processes")

    def _stop_scoring(self) -> None:
        for pid in _processes("serve.isolated")[:1]:
            _signal(pid, signal.SIGSTOP)
            self._count("stopped scoring processes")

    def _kill_video(self) -> None:
        for _ in range(200):
            for pid in _processes("serve.video_worker")[:1]:
                _signal(pid, signal.SIGKILL)
                self._count("kills of video processes")
                return
            time.sleep(0.02)

    def _fill_disk(self) -> None:
        filler = self._state / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        self._count("full disks")
        time.sleep(3)
        filler.unlink()

    def _look_at_memory(self) -> None:
        with suppress(OSError):
            assert self._server is not None
            pages = int(Path(f"/proc/{self._server.pid}/statm").read_text().split()[1])
            self.most_rss_mb = max(self.most_rss_mb, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    # The clients

    def _client(self, number: int) -> None:
        draw = random.Random(1000 * self._seed + number)
        asks = [self._infer, self._infer, self._infer, self._leave, self._summarize, self._video, self._cancel]
        while not self._stop.is_set():
            ask, url, life = draw.choice(asks), self._url, self._lives
            if not url:
                time.sleep(0.1)
                continue
            self._count("requests")
            try:
                self._count(ask(url, draw))
            except httpx.TimeoutException as error:
                self._count("hung" if life == self._lives and self._url else "lost with the server", 1, repr(error))
            except httpx.HTTPError as error:
                time.sleep(0.2)
                self._count(
                    "lost with the server" if life != self._lives or not self._url else "unexpected", 1, repr(error)
                )

    def _infer(self, url: str, draw: random.Random) -> str:
        which = draw.randrange(len(self._features))
        answer = self._asked(url, self._features[which])
        if answer.status_code != 200:
            return self._refused(answer, 503)
        scores = np.array(answer.json()["outputs"][0]["data"])
        return self._judged(np.allclose(scores, self._scores[which], rtol=0, atol=1e-6), answer)

    def _leave(self, url: str, draw: random.Random) -> str:
        with suppress(httpx.TimeoutException):
            self._asked(url, draw.choice(self._features), timeout=draw.uniform(0.001, 0.05))
        return "left by the client"

    def _asked(self, url: str, rows: np.ndarray, timeout: float = HUNG_S) -> httpx.Response:
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, *rows.shape]}
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": rows.nbytes}}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        body = head + rows.tobytes()
        return httpx.post(f"{url}/v2/models/default/infer", content=body, headers=headers, timeout=timeout)

    def _summarize(self, url: str, draw: random.Random) -> str:
        which = draw.randrange(len(self._features))
        file = io.BytesIO()
        np.save(file, self._features[which])
        answer = httpx.post(f"{url}/v1/summarize", files={"features": file.getvalue()}, timeout=HUNG_S)
        if answer.status_code != 200:
            return self._refused(answer, 503)
        return self._judged(_same(answer.json(), self._summaries[which]), answer)

    def _video(self, url: str, draw: random.Random) -> str:
        answer = httpx.post(f"{url}/v1/summarize", files={"video": ("oracle.mp4", self._film)}, timeout=HUNG_S)
        if answer.status_code == 202:
            return "accepted and left"
        if answer.status_code != 200:
            is_killed = answer.status_code == 500 and "died" in answer.text
            return "lost with its process" if is_killed else self._refused(answer, 503, 507)
        return self._judged(_same(answer.json(), self._film_summary), answer)

    def _cancel(self, url: str, draw: random.Random) -> str:
        headers = {"Prefer": "respond-async"}
        answer = httpx.post(f"{url}/v1/summarize", files={"video": self._film}, headers=headers, timeout=HUNG_S)
        if answer.status_code != 202:
            return self._refused(answer, 503, 507)
        time.sleep(draw.uniform(0, 2))
        answer = httpx.delete(url + answer.headers["Location"], timeout=HUNG_S)
        return "cancelled" if answer.status_code in (204, 404) else self._refused(answer)

    def _refused(self, answer: httpx.Response, *statuses: int) -> str:
        kind = f"refused with {answer.status_code}" if answer.status_code in statuses else "unexpected"
        self.examples.setdefault(kind, f"{answer.status_code} {answer.text[:300]}")
        return kind

    def _judged(self, is_right: bool, answer: httpx.Response) -> str:
        if not is_right:
            self.examples.setdefault("wrong", answer.text[:300])
        return "right" if is_right else "wrong"

    def _count(self, kind: str, n: int = 1, example: str = "") -> None:
        with self._lock:
            self.counts[kind] += n
            if n and example:
                self.examples.setdefault(kind, example)


def _same(answer: dict[str, Any], right: dict[str, Any]) -> bool:
    same = all(answer[key] == right[key] for key in ("n_frames", "segments", "picks"))
    return same and np.allclose(answer["scores"], right["scores"], rtol=0, atol=1e-6)


def _film() -> bytes:
    """Six seconds whose look changes every second."""
    out = io.BytesIO()
    looks = np.random.default_rng(1).integers(0, 255, (6, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(looks[index // 10], format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def _processes(name: str) -> list[int]:
    """Processes of this user below this one whose command names a module, and that run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if name in (folder / "cmdline").read_text() and (folder / "stat").read_text().rsplit(")", 1)[1][1] != "Z":
                environment = (folder / "environ").read_bytes()
                if f"VSUM_SOAK={os.getpid()}".encode() in environment:
                    found.append(int(folder.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a few MB in memory, where this user may mount one; whether that was so."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", str(folder)]
    is_mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, help="make one kind of fault; end-server: SIGTERM")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args()
    results = Results("python -m benchmarks.soak", PACKAGES, args.out)
    os.environ["VSUM_SOAK"] = str(os.getpid())  # marks what belongs to this run
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _small_disk(Path(folder) / "disk") as has_small_disk:
        soak = Soak(Path(folder) / "disk" / "state", has_small_disk=has_small_disk, seed=args.seed)
        soak.run(args.minutes, args.clients, args.only)
    size = f"{(time.monotonic() - began) / 60:.1f} minutes, {args.clients} clients, seed {args.seed}"
    where = "soak", size + (f", {args.only} alone" if args.only else ""), "server"
    for kind in [*MUST_BE_0, *sorted(soak.counts.keys() - set(MUST_BE_0))]:
        example = "" if kind.startswith("refused") else soak.examples.get(kind, "")
        results.add(*where, [soak.counts[kind]], metric=kind, unit="", note=example)
    results.add(*where, [1e6 * soak.most_rss_mb], metric="peak memory of the server", unit="B")
    return 1 if any(soak.counts[kind] for kind in MUST_BE_0) else 0


if __name__ == "__main__":
    sys.exit(main())
