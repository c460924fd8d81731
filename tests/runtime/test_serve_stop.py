"""The server as a process: how it stops, and what keeps it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from starlette.types import Message, Receive, Scope, Send

from vsum_runtime.runtime.serve.__main__ import main
from vsum_runtime.runtime.serve.job_store import FOLDER, JobStore
from vsum_runtime.runtime.serve.rest.app import EndOfGrace

ROOT = Path(__file__).resolve().parents[2]
DIM = 1280
INPUTS = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 1, DIM], "data": [1.0] * DIM}]}
in_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "vsum_runtime.runtime.serve", "--port", "0", "--workers", "1", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = (json.loads(line).get("message", "") for line in process.stderr)
            yield process, next(line.split()[-1] for line in lines if "listening on" in line)
        finally:
            process.kill()


def scoring_process(server: int) -> int:
    children = " ".join(file.read_text() for file in Path(f"/proc/{server}/task").glob("*/children")).split()
    [pid] = [pid for pid in children if "serve.isolated" in Path(f"/proc/{pid}/cmdline").read_text()]
    return int(pid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@in_proc
def test_sigterm_ends_a_server_whose_scoring_process_hangs() -> None:
    with serving("--isolate", "--grace-s", "3") as (process, url):
        scoring = scoring_process(process.pid)
        os.kill(scoring, signal.SIGSTOP)
        body = json.dumps(INPUTS).encode()
        head = f"POST /v2/models/default/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as client:
            client.sendall(head.encode() + body)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.wait(30) == 0
            assert 1.5 < time.monotonic() - began < 3.5  # the request had its time, and no more than that
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()  # it was cancelled, which is no failure
        assert not is_alive(scoring)


def test_an_answer_cut_off_by_the_end_of_the_grace_time_is_no_failure() -> None:
    async def film(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(EndOfGrace(film)({"type": "http"}, receive, send))
    assert [message.get("status") for message in sent] == [200]


@in_proc
def test_a_server_that_is_killed_takes_its_processes_with_it() -> None:
    with serving("--isolate") as (process, _):
        scoring = scoring_process(process.pid)
        process.kill()
    for _ in range(200):
        if not is_alive(scoring):
            break
        time.sleep(0.05)
    assert not is_alive(scoring)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "tls_cert: none.pem cannot be read: No such file"),
        (["--tls-cert", "empty", "--tls-key", "empty"], "tls_cert, tls_key: expected a certificate and its key"),
        (["--state-dir", "empty"], "empty: expected a folder for jobs, the disk refused"),
        (["--state-dir", "used"], "another server uses this folder"),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line_and_an_exit_code(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    (tmp_path / "empty").touch()
    store = JobStore(tmp_path / "used")
    assert main([*arguments, "--port", "0"]) in (1, 2)
    store.close()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_damaged_store_keeps_no_server_from_starting(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER / ("0" * 32)
    folder.mkdir(parents=True)
    (folder / "job.json").write_bytes(b"\x00damaged")
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database")
    with serving("--state-dir", str(tmp_path)) as (process, url):
        assert httpx.get(url + "/v2/health/ready").status_code == 200
        job = httpx.get(f"{url}/v1/jobs/{'0' * 32}").json()
        assert (job["state"], job["status"]) == ("failed", 500)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
