"""Requests as an attacker, a broken proxy or an old client frames them: what is answered, and what is never scored.

Each case is bytes on a connection and what must come back, in order, before the server closes or falls silent.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

import uvicorn

from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.serve import Server, create_app

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
    stated = (
        []
        if any(line.lower().startswith("transfer-") for line in lines)
        else [f"Content-Length: {length or len(data)}"]
    )
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


WHOLE = infer(3)
DATA, JSON_LENGTH = body(3)
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nInference-Header-Content-Length: {JSON_LENGTH}\r\n".encode()
CHUNKED = "Transfer-Encoding: chunked"
VALID: dict[str, bytes] = {
    "a length": WHOLE,
    "chunks": post(chunked(DATA, 1000), JSON_LENGTH, CHUNKED),
    "chunks of a byte and one of the rest": post(
        chunked(DATA[:40], 1)[:-5] + chunked(DATA[40:], 1 << 20), JSON_LENGTH, CHUNKED
    ),
    "chunks with extensions": post(chunked(DATA, 4000, extension=b';name="value"'), JSON_LENGTH, CHUNKED),
    "trailers": post(chunked(DATA, 4000, trailers=b"Host: evil.example\r\nX-Sum: 1\r\n"), JSON_LENGTH, CHUNKED),
    "names in any case": WHOLE.replace(b"Content-Length", b"cONTENT-lENGTH").replace(b"Host", b"HOST"),
    "chunked in any case": post(chunked(DATA, 4000), JSON_LENGTH, "TRANSFER-ENCODING: CHUNKED"),
    "spaces and tabs around values": WHOLE.replace(b"Content-Length: ", b"Content-Length:\t "),
    "a length with zeros before it": WHOLE.replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 000"),
    "an empty line before": b"\r\n" + WHOLE,
    "a full target": WHOLE.replace(INFER.encode(), b"http://127.0.0.1" + INFER.encode(), 1),
    "a wait for 100": infer(3, "Expect: 100-continue"),
    "ninety headers": infer(3, *(f"X-{i}: {i}" for i in range(90))),
}
NOT_BY_H11 = ("an empty line before", "a full target")
"""What uvicorn refuses or takes for another path where h11 parses."""
REFUSED: dict[str, tuple[bytes, int]] = {
    "a length and chunks": (post(chunked(DATA, 4000), JSON_LENGTH, CHUNKED, f"Content-Length: {len(DATA)}"), 400),
    "two lengths": (infer(3, "Content-Length: 5"), 400),
    "the same length twice": (infer(3, f"Content-Length: {len(DATA)}"), 400),
    **{
        f"the length {text}": (HEAD + f"Content-Length: {text}\r\n\r\n".encode() + DATA, 400)
        for text in ("+5", "-1", "0x10", "5, 5", "5 5", "1e3", "", "99999999999999999999999")
    },
    "a coding before chunked": (post(chunked(DATA, 4000), JSON_LENGTH, "Transfer-Encoding: gzip, chunked"), 501),
    "a coding after chunked": (post(chunked(DATA, 4000), JSON_LENGTH, "Transfer-Encoding: chunked, identity"), 400),
    "chunked twice": (post(chunked(DATA, 4000), JSON_LENGTH, CHUNKED, CHUNKED), 400),
    "a coding like chunked": (post(chunked(DATA, 4000), JSON_LENGTH, "Transfer-Encoding: xchunked"), 501),
    "chunks in HTTP/1.0": (post(chunked(DATA, 4000), JSON_LENGTH, CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    **{
        f"the chunk size {size!r}": (post(size + b"\r\n" + DATA, JSON_LENGTH, CHUNKED), 400)
        for size in (b"g", b"-5", b"0x5", b"", b" 5", b"fffffffffffffffff")
    },
    "a chunk longer than its size": (post(b"5\r\n" + DATA, JSON_LENGTH, CHUNKED), 400),
    "a line without colon": (WHOLE.replace(b"\r\n\r\n", b"\r\nnonsense\r\n\r\n", 1), 400),
    "a space before the colon": (WHOLE.replace(b"Content-Length:", b"Content-Length :"), 400),
    "a folded line": (infer(3, "X-A: 1\r\n folded"), 400),
    "a zero byte in a value": (infer(3, "X-A: \0"), 400),
    "no Host": (WHOLE.replace(b"Host: 127.0.0.1\r\n", b""), 400),
    "two Hosts": (infer(3, "Host: 127.0.0.1"), 400),
    "HTTP/2.0": (WHOLE.replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "HTTP/3.7": (WHOLE.replace(b"HTTP/1.1", b"HTTP/3.7"), 400),
    "a preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a greeting of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "a proxy's CONNECT": (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", 405),
    "no method": (b"\0\0\0\0 / HTTP/1.1\r\n\r\n", 400),
    "a head of 100 KB": (infer(3, "X-A: " + "a" * 100_000), 431),
    "a target of 100 KB": (WHOLE.replace(INFER.encode(), INFER.encode() + b"?" + b"a" * 100_000, 1), 431),
    "a thousand headers": (infer(3, *(f"X-{i}: {i}" for i in range(1000))), 431),
    "trailers of 100 KB": (
        post(chunked(DATA, 4000, trailers=b"X-A: " + b"a" * 100_000 + b"\r\n"), JSON_LENGTH, CHUNKED),
        431,
    ),
    "an endless name": (b"GET /v2 HTTP/1.1\r\n" + b"a" * 600_000, 431),
}


@pytest.fixture(scope="module", params=["ours", "uvicorn with httptools", "uvicorn with h11"])
def door(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[str, int]]:
    """The port of our server, or of plain uvicorn before the same application."""
    if request.param == "ours":
        yield request.param, server.port
        return
    http: Any = request.param.split()[-1]
    config = uvicorn.Config(create_app(), http=http, port=0, log_config=None, access_log=False, lifespan="on")
    plain = uvicorn.Server(config)
    thread = threading.Thread(target=plain.run)
    thread.start()
    while not plain.started:
        time.sleep(0.01)
    yield request.param, plain.servers[0].sockets[0].getsockname()[1]
    plain.should_exit = True
    thread.join()


@pytest.mark.parametrize("name", VALID)
def test_what_the_standard_allows_is_answered_and_so_is_what_follows(
    door: tuple[str, int], scores: dict[int, np.ndarray], name: str
) -> None:
    kind, port = door
    if kind == "uvicorn with h11" and name in NOT_BY_H11:
        pytest.skip("h11 or uvicorn's use of it differs from the standard here")
    sent = VALID[name] + infer(40, LAST, request_id="next")
    for pieces in (None, [1, 30, 1, 200, 1000, 3000]):
        answers, closed = exchange(port, sent, pieces)
        assert [(a.status, a.id) for a in answers] == [(200, "mine"), (200, "next")]
        assert closed
        for answer, n_steps in zip(answers, (3, 40), strict=True):
            np.testing.assert_allclose(answer.scores, scores[n_steps], atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_allow_is_refused_and_nothing_behind_it_is_read(server: Server, name: str) -> None:
    sent, status = REFUSED[name]
    for pieces in (None, [1, 30, 1, 200]):
        answers, closed = exchange(server.port, sent + infer(3, request_id="behind"), pieces)
        assert [answer.status for answer in answers] == [status]
        assert closed
        assert list(json.loads(answers[0].body)) == ["error"]


@pytest.mark.parametrize(
    "bad", [b"nonsense\r\n\r\n", post(b"5\r\nnonsense", 5, CHUNKED), infer(3, "Content-Length: 1")]
)
def test_bytes_that_are_no_request_cost_the_request_before_them_no_answer(
    server: Server, scores: dict[int, np.ndarray], bad: bytes
) -> None:
    answers, closed = exchange(server.port, infer(40) + bad + infer(3, request_id="behind"))
    assert [(a.status, a.id) for a in answers] == [(200, "mine")]
    assert closed
    np.testing.assert_allclose(answers[0].scores, scores[40], atol=1e-6)


def test_a_request_after_one_that_closes_is_not_answered(server: Server) -> None:
    answers, closed = exchange(server.port, infer(3, LAST) + infer(3, request_id="behind"))
    assert [(a.status, a.id) for a in answers] == [(200, "mine")]
    assert closed


@pytest.mark.parametrize("seed", range(4))
def test_whatever_heads_are_made_of_each_score_belongs_to_its_request(
    server: Server, scores: dict[int, np.ndarray], caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Requests in every form follow each other in pieces of any size; two in five have a byte of the head changed, lost
    or doubled. An answer may be refused or missing; none may be another's, or of bytes that did not come.
    """
    draws = random.Random(seed)

    def run(number: int) -> int:
        sent = bytearray()
        asked = []
        for i in range(3):
            n_steps, request_id = draws.choice((1, 3)), f"{number}.{i}"
            data, json_length = body(n_steps, request_id)
            lines = draws.choice(([], ["Connection: Upgrade", "Upgrade: h2c"], ["Expect: 100-continue"]))
            if draws.random() < 0.5:
                part = post(chunked(data, draws.choice((37, 1000, 9000))), json_length, *lines, CHUNKED)
            else:
                part = post(data, json_length, *lines)
            if draws.random() < 0.4:
                part = changed(part, json_length)
            asked.append((request_id, n_steps))
            sent += part
        sent += b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        pieces = [draws.choice((1, 7, 100, 3000)) for _ in range(draws.randrange(12))]
        answers, _ = exchange(server.port, bytes(sent), pieces)
        n_steps_of = dict(asked)
        good = [answer for answer in answers if "inference-header-content-length" in answer.headers]
        for answer in good:
            np.testing.assert_allclose(answer.scores, scores[n_steps_of.pop(answer.id)], atol=1e-6)
        return len(good)

    def changed(part: bytes, json_length: int) -> bytes:
        at = draws.randrange(part.index(b"\r\n\r\n") + 4)
        how = draws.randrange(3)
        if how == 0:
            return part[:at] + bytes([draws.randrange(256)]) + part[at + 1 :]
        return part[:at] + part[at + 1 :] if how == 1 else part[: at + 1] + part[at:]

    n_good = sum(run(number) for number in range(25))
    assert 10 < n_good < 75
    assert exchange(server.port, infer(1, LAST))[0][0].status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
