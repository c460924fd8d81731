"""A graph in processes of its own: a scoring library that crashes takes one request with it, and not the server.

`IsolatedSession` meets the contract of ``runtime.backends.base.Session``; each of its processes opens the graph and
runs one call at a time. Inputs are written to memory that both processes map, and scored where they lie. Over a pipe go
what lies where, as JSON, and the outputs, which are small.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, BusyError, VsumError
from vsum_runtime.runtime.machine import keep_freed_memory

_KEPT_BYTES = 32 << 20  # of the memory that a process shares with the server; more of it is given back after a call
_ALIGNMENT = 64
_TRAITS = ("name", "precision", "batch_tokens", "n_callers", "is_reference", "uses_host_memory")


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
        self.is_reference, self.uses_host_memory = bool(said["is_reference"]), bool(said["uses_host_memory"])
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
        self._memory = _Memory(_anonymous_file())
        fds = [theirs.fileno(), self._memory.fd]
        command = [sys.executable, "-m", "vsum_runtime.runtime.serve.isolated", *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
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
        self._wire.send_bytes(json.dumps(self._memory.write(inputs)).encode())
        answer = json.loads(self._wire.recv_bytes())
        self._memory.trim()
        if isinstance(answer, str):
            raise BackendError(answer)
        outputs = [np.empty(shape, np.float32) for shape in answer]
        for output in outputs:
            self._wire.recv_bytes_into(output.reshape(-1).view(np.uint8))
        return outputs

    def stop(self) -> str:
        """End the process; how it ended."""
        self._wire.close()
        os.close(self._memory.fd)
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Memory:
    """A file that both processes map. It grows with the largest call; above _KEPT_BYTES it is given back after it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._mapped = np.empty(0, np.uint8)

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Put arrays there: the size of the file, then name, type, shape and place of each."""
        told, end = [], 0
        for name, array in arrays.items():
            told.append([name, array.dtype.str, array.shape, end])
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if (size := len(self._mapped)) < end:
            size = max(end, min(2 * size, _KEPT_BYTES))
            os.ftruncate(self.fd, size)
        for target, array in zip(self.read([size, *told]).values(), arrays.values(), strict=True):
            target[...] = array
        return [size, *told]

    def read(self, told: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """What `write` put there."""
        size, *arrays = told
        if size != len(self._mapped):
            self._mapped = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
        found = {}
        for name, dtype, shape, at in arrays:
            n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            found[name] = self._mapped[at : at + n_bytes].view(dtype).reshape(shape)
        return found

    def trim(self) -> None:
        if len(self._mapped) > _KEPT_BYTES:
            self._mapped = np.empty(0, np.uint8)
            os.ftruncate(self.fd, 0)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("vsum")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def main() -> None:
    """The process: open the graph, then answer until the server closes the connection."""
    from vsum_runtime.runtime.backends import open_session

    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server finishes first
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    memory = _Memory(int(sys.argv[2]))
    with Connection(int(sys.argv[1])) as wire, suppress(EOFError, OSError):
        task = json.loads(wire.recv_bytes())
        graph, half = Path(task.pop("graph")), task.pop("half")
        try:
            session = open_session(graph, task.pop("name"), half=half and Path(half), **task)
        except VsumError as error:
            wire.send_bytes(json.dumps({"error": str(error)}).encode())
            return
        said = {name: getattr(session, name) for name in _TRAITS}
        wire.send_bytes(json.dumps(said).encode())
        while True:
            told = json.loads(wire.recv_bytes())
            try:
                outputs = session.run(memory.read(told))
            except VsumError as error:
                wire.send_bytes(json.dumps(str(error)).encode())
                continue
            wire.send_bytes(json.dumps([output.shape for output in outputs]).encode())
            for output in outputs:
                wire.send_bytes(np.ascontiguousarray(output).reshape(-1).view(np.uint8).data)


if __name__ == "__main__":
    main()
