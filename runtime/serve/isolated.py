"""A graph in processes of its own: a scoring library that crashes takes one request with it, and not the server.

`IsolatedSession` meets the contract of ``runtime.backends.base.Session``; each of its processes opens the graph and
runs one call at a time. Inputs are written to memory that both processes map, and scored where they lie. Over a pipe go
what lies where, as JSON, and the outputs, which are small.

One thread, the keeper, starts processes and replaces those that died or hang. Descriptors of a process are closed by
whoever holds it, the keeper or the one call it runs, and with them the objects that own them: a number that was closed
is never written to.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, BusyError, VsumError
from vsum_runtime.runtime.machine import keep_freed_memory
from vsum_runtime.runtime.serve.tether import end_with_parent

log = logging.getLogger(__name__)

_KEPT_BYTES = 32 << 20  # of the memory that a process shares with the server; more of it is given back after a call
_ALIGNMENT = 64
_TRAITS = ("name", "precision", "batch_tokens", "n_callers", "is_reference", "uses_host_memory")
_TRIES = 3  # of a call whose process died before it began
_LOOK_S = 1.0  # between two looks at the clock
_LONGEST_PAUSE_S = 30.0  # between two processes that could not be started
_ENDING_S = 5.0


class IsolatedSession:
    """A session whose calls run in ``n_processes`` processes.

    A process that dies is replaced. It takes the call with it that it had begun, and no other; one that could not be
    replaced is tried again until it can. A call that takes longer than ``call_timeout_s`` is ended with its process.

    Raises
    ------
    BackendError
        the graph cannot be opened, by the message of ``runtime.backends.open_session``
    """

    def __init__(
        self,
        graph: Path,
        name: str,
        *,
        n_processes: int,
        call_timeout_s: float = 120.0,
        precision: str = "fp32",
        half: Path | None = None,
        n_threads: int | None = None,
    ) -> None:
        half_text = None if half is None else str(half)
        self._task = {
            "graph": str(graph), "name": name, "precision": precision, "half": half_text, "n_threads": n_threads
        }  # fmt: skip
        self._n_processes, self._call_timeout_s = n_processes, call_timeout_s
        self._idle: deque[_Child] = deque()
        self._busy: dict[_Child, float] = {}  # and when its call is over at the latest
        self._traits: dict[str, Any] = {}
        self._problem: VsumError | None = None
        """Why the last process could not be started."""
        self._closing = False
        self._changed = threading.Condition()
        self._bell, self._ring = Pipe(duplex=False)
        self._keeper = threading.Thread(target=self._keep, name="isolated-keeper", daemon=True)
        self._keeper.start()
        with self._changed:
            self._changed.wait_for(lambda: self._traits or self._problem is not None)
        if not self._traits:
            self.close()
            assert self._problem is not None
            raise self._problem
        self.name, self.precision = str(self._traits["name"]), str(self._traits["precision"])
        self.batch_tokens, self.n_callers = int(self._traits["batch_tokens"]), int(self._traits["n_callers"])
        self.is_reference = bool(self._traits["is_reference"])
        self.uses_host_memory = bool(self._traits["uses_host_memory"])

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        """The outputs of one call.

        Raises
        ------
        BackendError
            what the library raised
        BusyError
            the process died or was too slow, or there is none
        """
        how = ""
        for _ in range(_TRIES):
            child = self._take()
            try:
                outputs = child.ask(inputs)
            except BackendError:
                self._give_back(child)
                raise
            except (EOFError, OSError):
                has_begun, how = child.has_begun, child.stop()
                self._forget(child)
                if has_begun:
                    break
            except BaseException:
                child.kill()
                child.stop()
                self._forget(child)
                raise
            else:
                self._give_back(child)
                return outputs
        raise BusyError(f"the process that scored this request died ({how}); another takes its place")

    def close(self) -> None:
        """End all processes, also those that hang; calls that run get a BusyError."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake()
        self._keeper.join()

    def _take(self) -> _Child:
        with self._changed:
            while not self._closing:
                while self._idle:
                    child = self._idle.popleft()
                    if child.is_alive:
                        self._busy[child] = time.monotonic() + self._call_timeout_s
                        return child
                    child.stop()
                    self._wake()
                if self._problem is not None and not self._busy:
                    raise BusyError(f"there is no process to score this request: {self._problem}", retry_after_s=5)
                self._changed.wait()
        raise BusyError("the model is being removed or the server stops; try again")

    def _give_back(self, child: _Child) -> None:
        with self._changed:
            del self._busy[child]
            self._idle.append(child)
            self._changed.notify_all()

    def _forget(self, child: _Child) -> None:
        with self._changed:
            del self._busy[child]
            self._changed.notify_all()
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # the keeper has ended
            self._ring.send_bytes(b"!")

    def _keep(self) -> None:
        """Keep ``n_processes`` processes; the thread of their keeper, with which they end."""
        opening: list[_Child] = []
        pause_s = next_start = 0.0
        while not self._closing:
            now = time.monotonic()
            with self._changed:
                n_missing = self._n_processes - len(self._idle) - len(self._busy) - len(opening)
                for child in [child for child, until in self._busy.items() if until < now]:
                    log.warning("a call took longer than %g s; its process is ended", self._call_timeout_s)
                    child.kill()  # its caller finds it dead
            problem: VsumError | None = None
            if n_missing > 0 and next_start <= now:
                try:
                    for _ in range(n_missing):
                        opening.append(_Child(self._task))
                except Exception as error:
                    problem = BackendError(f"{self._task['graph']}: no process could be started: {error}")
            for ready in wait([self._bell, *(child.wire for child in opening)], _LOOK_S):
                if ready is self._bell:
                    while self._bell.poll():
                        self._bell.recv_bytes()
                    continue
                child = next(child for child in opening if child.wire is ready)
                opening.remove(child)
                try:
                    traits = child.greeting()
                except Exception as error:
                    how = child.stop()
                    died = BackendError(f"{self._task['graph']}: the process that opened it died ({how})")
                    problem = error if isinstance(error, VsumError) else died
                    continue
                pause_s = 0.0
                with self._changed:
                    self._traits, self._problem = self._traits or traits, None
                    self._idle.append(child)
                    self._changed.notify_all()
            if problem is not None:
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s or 1.0)
                next_start = time.monotonic() + pause_s
                log.warning("%s; trying again in %g s", problem, pause_s)
                with self._changed:
                    self._problem = problem
                    self._changed.notify_all()
        with self._changed:
            for child in [*opening, *self._idle]:
                child.kill()
                child.stop()
            self._idle.clear()
            for child in self._busy:
                child.kill()
            self._changed.wait_for(lambda: not self._busy, _ENDING_S)  # each is closed by its caller
        self._bell.close()
        self._ring.close()


class _Child:
    """One process, opening the graph from now on."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.wire, theirs = Pipe()
        with theirs:
            self._memory = _Memory(_anonymous_file())
            fds = [theirs.fileno(), self._memory.file.fileno()]
            command = [sys.executable, "-m", "vsum_runtime.runtime.serve.isolated", *map(str, fds)]
            try:
                self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.PIPE)
            except BaseException:
                self._close()
                raise
        with suppress(OSError):  # it is dead already; the greeting will tell
            self.wire.send_bytes(json.dumps(task).encode())

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def has_begun(self) -> bool:
        """Whether the call that was asked for last has begun."""
        return self._memory.has_begun

    def greeting(self) -> dict[str, Any]:
        """What the process says of the graph, once it is open."""
        answer: dict[str, Any] = json.loads(self.wire.recv_bytes())
        if "error" in answer:
            raise BackendError(answer["error"])
        return answer

    def ask(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        self.wire.send_bytes(json.dumps(self._memory.write(inputs)).encode())
        answer = json.loads(self.wire.recv_bytes())
        if isinstance(answer, str):
            self._memory.trim()
            raise BackendError(answer)
        outputs = [np.empty(shape, np.float32) for shape in answer]
        for output in outputs:
            self.wire.recv_bytes_into(output.reshape(-1).view(np.uint8))
        self._memory.trim()
        return outputs

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> str:
        """Close all that belongs to it, which ends it; how it ended."""
        self._close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _close(self) -> None:
        self.wire.close()
        self._memory.close()


class _Memory:
    """A file that both processes map. It grows with the largest call; above _KEPT_BYTES it is given back after it.

    Its first byte says whether the call has begun.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._mapped = np.empty(0, np.uint8)

    @property
    def has_begun(self) -> bool:
        return len(self._mapped) > 0 and bool(self._mapped[0])

    def begin(self) -> None:
        self._mapped[0] = 1

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Put arrays there: the size of the file, then name, type, shape and place of each."""
        if len(self._mapped):
            self._mapped[0] = 0
        places, end = [], _ALIGNMENT
        for name, array in arrays.items():
            places.append([name, array.dtype.str, array.shape, end])
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if (size := len(self._mapped)) < end:
            size = max(end, min(2 * size, _KEPT_BYTES))
            os.ftruncate(self.file.fileno(), size)
        for target, array in zip(self.read([size, *places]).values(), arrays.values(), strict=True):
            target[...] = array
        return [size, *places]

    def read(self, layout: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """What `write` put there."""
        size, *places = layout
        if size != len(self._mapped):
            self._mapped = np.frombuffer(mmap.mmap(self.file.fileno(), size), np.uint8)
        arrays = {}
        for name, dtype, shape, start in places:
            n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = self._mapped[start : start + n_bytes].view(dtype).reshape(shape)
        return arrays

    def trim(self) -> None:
        if len(self._mapped) > _KEPT_BYTES:
            self._mapped = np.empty(0, np.uint8)
            os.ftruncate(self.file.fileno(), 0)

    def close(self) -> None:
        self._mapped = np.empty(0, np.uint8)
        self.file.close()


def _anonymous_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # Linux
        return os.fdopen(os.memfd_create("vsum"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def main() -> None:
    """The process: open the graph, then answer until the server closes the connection."""
    from vsum_runtime.runtime.backends import open_session

    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server finishes first
        signal.signal(number, signal.SIG_IGN)
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory()
    end_with_parent()
    memory = _Memory(os.fdopen(int(sys.argv[2]), "r+b", buffering=0))
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
            inputs = memory.read(json.loads(wire.recv_bytes()))
            memory.begin()
            try:
                outputs = session.run(inputs)
            except Exception as error:
                kind = "" if isinstance(error, VsumError) else f"the model failed: {type(error).__name__}: "
                wire.send_bytes(json.dumps(f"{kind}{error}").encode())
                continue
            wire.send_bytes(json.dumps([output.shape for output in outputs]).encode())
            for output in outputs:
                wire.send_bytes(np.ascontiguousarray(output).reshape(-1).view(np.uint8).data)


if __name__ == "__main__":
    main()
