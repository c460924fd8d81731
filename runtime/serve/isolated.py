"""A graph in processes of its own: a scoring library that crashes takes one request with it, and not the server.

`IsolatedSession` meets the contract of ``runtime.backends.base.Session``; each of its processes opens the graph and
runs one call at a time. Between them goes a line of JSON with names, types and shapes, then the bytes of each array.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError, BusyError, VsumError
from runtime.machine import keep_freed_memory


class IsolatedSession:
    """A session whose calls run in ``n_processes`` processes; one that dies is replaced.

    Raises
    ------
    BackendError   the graph cannot be opened, by the message of ``runtime.backends.open_session``
    """

    def __init__(
        self,
        graph: Path,
        name: str,
        *,
        n_processes: int,
        precision: str = "fp32",
        half: Path | None = None,
        n_threads: int | None = None,
    ) -> None:
        half_text = None if half is None else str(half)
        self._task = {
            "graph": str(graph), "name": name, "precision": precision, "half": half_text, "n_threads": n_threads
        }  # fmt: skip
        self._n_processes = n_processes
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        first = _Child(self._task)
        try:
            said = first.greeting()
        except (EOFError, OSError):
            raise BackendError(f"{graph}: the process that opened it died ({first.stop()})") from None
        except BaseException:
            first.stop()
            raise
        self.name, self.precision = str(said["name"]), str(said["precision"])
        self.batch_tokens, self.n_callers = int(said["batch_tokens"]), int(said["n_callers"])
        self._idle.put(first)
        for _ in range(n_processes - 1):
            self._idle.put(_Child(self._task))

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        child = self._idle.get()
        try:
            child.greeting()
            return child.ask(inputs)
        except (EOFError, OSError):
            how = child.stop()
            child = _Child(self._task)
            raise BusyError(f"the process that scored this request died ({how}); another takes its place") from None
        finally:
            self._idle.put(child)

    def close(self) -> None:
        for _ in range(self._n_processes):
            self._idle.get().stop()


class _Child:
    """One process, opening the graph from now on."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self._wire, theirs = Pipe()
        command = [sys.executable, "-m", "runtime.serve.isolated", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._said: dict[str, Any] = {}
        with suppress(OSError):  # it is dead already; the greeting will tell
            self._wire.send_bytes(json.dumps(task).encode())

    def greeting(self) -> dict[str, Any]:
        """What the process says of the graph, once it is open."""
        if not self._said:
            said = json.loads(self._wire.recv_bytes())
            if "error" in said:
                raise BackendError(said["error"])
            self._said = said
        return self._said

    def ask(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        _send(self._wire, inputs)
        answer = _receive(self._wire)
        if isinstance(answer, str):
            raise BackendError(answer)
        return list(answer.values())

    def stop(self) -> str:
        """End the process; how it ended."""
        self._wire.close()
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _send(wire: Connection, arrays: Mapping[str, NDArray[Any]]) -> None:
    wire.send_bytes(json.dumps([[name, a.dtype.str, a.shape] for name, a in arrays.items()]).encode())
    for array in arrays.values():
        wire.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _receive(wire: Connection) -> dict[str, NDArray[Any]] | str:
    """Arrays, or the message of what went wrong."""
    head = json.loads(wire.recv_bytes())
    if isinstance(head, str):
        return head
    arrays = {}
    for name, dtype, shape in head:
        data = np.empty(int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
        wire.recv_bytes_into(data)
        arrays[name] = data.view(dtype).reshape(shape)
    return arrays


def main() -> None:
    """The process: open the graph, then answer until the server closes the connection."""
    from runtime.backends import open_session

    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server finishes first
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    with Connection(int(sys.argv[1])) as wire, suppress(EOFError, OSError):
        task = json.loads(wire.recv_bytes())
        graph, half = Path(task.pop("graph")), task.pop("half")
        try:
            session = open_session(graph, task.pop("name"), half=half and Path(half), **task)
        except VsumError as error:
            wire.send_bytes(json.dumps({"error": str(error)}).encode())
            return
        said = {name: getattr(session, name) for name in ("name", "precision", "batch_tokens", "n_callers")}
        wire.send_bytes(json.dumps(said).encode())
        while isinstance(inputs := _receive(wire), dict):
            try:
                outputs = session.run(inputs)
            except VsumError as error:
                wire.send_bytes(json.dumps(str(error)).encode())
            else:
                _send(wire, {str(i): output for i, output in enumerate(outputs)})


if __name__ == "__main__":
    main()
