"""Requests as an attacker, a broken proxy or an old client frames them: what is answered, and what is never scored.

Each case is bytes on a connection and what must come back, in order, before the server closes or falls silent.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.serve import Server

DIM = 1280
INFER = "/v2/models/default/infer"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(port=0, body_timeout_s=0.5, header_timeout_s=0.5, max_body_mb=4.0) as found:
        yield found


@pytest.fixture(scope="module")
def scores() -> dict[int, np.ndarray]:
    """What a video of n steps must be given."""
    with Summarizer() as summarizer:
        return {n: summarizer.score([features(n)])[0] for n in (1, 3, 40)}


def features(n_steps: int) -> np.ndarray:
    return np.random.default_rng(n_steps).random((n_steps, DIM), dtype=np.float32)


def body(n_steps: int, request_id: str = "mine") -> tuple[bytes, int]:
    """A request for scores with its features as bytes, and the length of its JSON."""
    values = features(n_steps)
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, n_steps, DIM]}
    tensor["parameters"] = {"binary_data_size": values.nbytes}
    header = json.dumps({"id": request_id, "inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return header + values.tobytes(), len(header)


def chunked(data: bytes, size: int, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts) + b"0\r\n" + trailers + b"\r\n"


def post(data: bytes, json_length: int, *lines: str, length: int | None = None) -> bytes:
    """A whole request; ``length`` states another Content-Length than that of the data."""
    stated = [] if any("ransfer-" in line for line in lines) else [f"Content-Length: {length or len(data)}"]
    head = [f"POST {INFER} HTTP/1.1", "Host: 127.0.0.1", f"Inference-Header-Content-Length: {json_length}"]
    return "\r\n".join([*head, *stated, *lines, "", ""]).encode() + data


def infer(n_steps: int, *lines: str, request_id: str = "mine", length: int | None = None) -> bytes:
    return post(*body(n_steps, request_id), *lines, length=length)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return str(self._json().get("id", ""))

    @property
    def scores(self) -> np.ndarray:
        return np.frombuffer(self.body[int(self.headers["inference-header-content-length"]) :], "<f4")

    def _json(self) -> dict[str, object]:
        length = int(self.headers.get("inference-header-content-length", len(self.body)))
        found: dict[str, object] = json.loads(self.body[:length])
        return found


def exchange(
    port: int, sent: bytes, pieces: list[int] | None = None, quiet_s: float = 3.0
) -> tuple[list[Answer], bool]:
    """Send bytes, whole or in pieces of these sizes; the answers, and whether the server closed after them."""
    with socket.create_connection(("127.0.0.1", port), timeout=quiet_s) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            at = 0
            try:
                for size in pieces or []:
                    wire.sendall(sent[at : at + size])
                    at += size
                    time.sleep(0.0005)
                wire.sendall(sent[at:])
            except OSError:
                pass  # the server may close before it has read everything

        sending = threading.Thread(target=send)
        sending.start()
        answers, closed = _answers(wire)
        sending.join()
    return answers, closed


def _answers(wire: socket.socket) -> tuple[list[Answer], bool]:
    answers, data = [], b""
    while True:
        try:
            part = wire.recv(1 << 16)
        except TimeoutError:
            return answers, False
        except ConnectionResetError:
            part = b""
        data += part
        while b"\r\n\r\n" in data:
            head, _, rest = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            status, size = int(first.split()[1]), int(headers.get("content-length", 0))
            if status >= 200:
                if len(rest) < size:
                    break
                answers.append(Answer(status, headers, rest[:size]))
                rest = rest[size:]
            data = rest
        if not part:
            return answers, True


LAST = "Connection: close"
"""Ends each case, so that nothing waits for silence."""


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"),
        ("Connection: keep-alive, Upgrade", "Upgrade: TLS/1.2, h2c"),
        ("Upgrade: foo/2", "Connection: UPGRADE"),
    ],
)
def test_an_offer_to_upgrade_is_ignored_and_the_request_answered(
    server: Server, scores: dict[int, np.ndarray], lines: tuple[str, ...]
) -> None:
    for pieces in (None, [40, 200, 3000]):
        sent = infer(40, *lines) + infer(3, request_id="next") + infer(1, LAST, request_id="last")
        answers, closed = exchange(server.port, sent, pieces)
        assert [(a.status, a.id) for a in answers] == [(200, "mine"), (200, "next"), (200, "last")]
        assert closed
        for answer, n_steps in zip(answers, (40, 3, 1), strict=True):
            np.testing.assert_allclose(answer.scores, scores[n_steps], atol=1e-6)


@pytest.mark.parametrize("lines", [(), ("Connection: Upgrade", "Upgrade: h2c"), ("Expect: 100-continue",)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_body_shorter_than_stated_is_never_scored(server: Server, lines: tuple[str, ...], share: float) -> None:
    exchange(server.port, infer(40, LAST, request_id="another's"))
    whole, json_length = body(40)
    sent = post(whole[: int(share * len(whole))], json_length, *lines, length=len(whole))
    answers, closed = exchange(server.port, sent)
    assert [a.status for a in answers] == [408]
    assert closed
    assert b"another" not in answers[0].body
