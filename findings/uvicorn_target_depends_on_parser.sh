#!/usr/bin/env bash
# uvicorn: which path an application is asked for depends on the parser that happens to be installed.
# A request line may carry the whole URL (RFC 9112, 3.2.2: "A server MUST accept the absolute-form"), as clients of a proxy
# send it. With httptools the application sees the path /a; with h11, which uvicorn takes where httptools is missing, it
# sees the whole URL as the path. An empty line before a request (RFC 9112, 2.2: a server "SHOULD ignore at least one") is
# skipped by httptools and answered with 400 by h11.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 h11==0.16.0 httptools==0.9.0
"$folder/venv/bin/python" - <<'PYTHON'
import socket
import sys
import threading
import time
from importlib.metadata import version

import uvicorn


async def app(scope, receive, send):
    path = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
    await send({"type": "http.response.body", "body": path})


def ask(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
        wire.sendall(request)
        answer = b""
        while part := wire.recv(4096):
            answer += part
    return answer.split(b"\r\n")[0].split()[1].decode(), answer.partition(b"\r\n\r\n")[2].decode()


end = b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
seen = {}
for parser in ("httptools", "h11"):
    server = uvicorn.Server(uvicorn.Config(app, http=parser, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    seen[parser] = ask(port, b"GET http://127.0.0.1/a" + end), ask(port, b"\r\nGET /a" + end)[0]
    server.should_exit = True
    thread.join()
print("uvicorn", version("uvicorn"), "h11", version("h11"), "httptools", version("httptools"))
print("expected of both: ('200', '/a') for the whole URL, 200 after an empty line")
for parser, found in seen.items():
    print(f"{parser}: {found}")
as_described = {
    "httptools": (("200", "/a"), "200"),
    "h11": (("200", "http://127.0.0.1/a"), "400"),
}
sys.exit(seen != as_described)
PYTHON
