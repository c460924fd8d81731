"""A Summarizer in processes of its own: a file that makes a library abort ends one process and fails one video.

Each process opens the model once and works on one video at a time; one that dies is replaced for the next video. Over
its standard input and output go messages, a line of JSON each, and behind it as many bytes of npz as it says:

=================================================  ====================================================================
to the process                                     from it
=================================================  ====================================================================
the options of the model                           ``{"bundle": path}`` once it is open, or an error
``{"call": "summarize", ...}``                     ``{"progress": share}``, then ``{"summary": ...}`` or an error
``{"call": "extract", ...}``                       ``{"progress": share}``, then ``{"extracted": ...}`` or an error
``{"call": "recipe"}``                             ``{"recipe": ...}`` or an error
``{"call": "write_video", ...}``                   ``{"progress": share}``, then ``{"done": true}`` or an error
``{"call": "stop"}`` at any time                   the call under way ends as soon as it can, with an error
=================================================  ====================================================================

An error is ``{"error": class, "message": text}``. ``{"log": level, "message": text}`` may come at any time. When its
standard input ends, so does the process.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from vsum_runtime.runtime import errors
from vsum_runtime.runtime.atomic import remove_leftovers
from vsum_runtime.runtime.errors import VideoError, VsumError
from vsum_runtime.runtime.summary import Summary

if TYPE_CHECKING:
    from vsum_runtime.runtime.extractor import Extracted
    from vsum_runtime.runtime.recipe import Recipe

_log = logging.getLogger("vsum_runtime")
_REPORT_S = 0.1  # progress comes at most so often; it is also when a call notices that it should stop
_STOPPING_S = 10  # what a call may take to clean up before its process is killed
_CAUSES = {
    "SIGABRT": "a native library aborted",
    "SIGBUS": "a native library crashed",
    "SIGFPE": "a native library crashed",
    "SIGILL": "a native library crashed",
    "SIGKILL": "killed from outside, as the system does where memory runs out",
    "SIGSEGV": "a native library crashed",
}

Progress = Callable[[float], None]


class SummarizerProcess:
    """One opened model in ``n_processes`` processes; its calls may come from as many threads.

    Parameters
    ----------
    options
        of ``runtime.Summarizer``: bundle, backend, n_threads, memory_limit_bytes, cache

    Raises
    ------
    VsumError
        as ``runtime.Summarizer`` does
    """

    def __init__(self, options: dict[str, Any], *, n_processes: int = 1) -> None:
        self._options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()  # None: one is to be started
        self._running: set[_Process] = set()
        first, *_ = processes = [self._started() for _ in range(n_processes)]
        for process in processes:
            self._idle.put(process)
        try:
            self.bundle = Path(str(first.opened()["bundle"]))
        except _Died:
            raise VsumError(f"the process that opens the model died ({first.end()})") from None
        except BaseException:
            self.close()
            raise

    def summarize(
        self,
        video: str | os.PathLike[str],
        *,
        budget: float | str = 0.15,
        keep: Sequence[tuple[float, float]] = (),
        drop: Sequence[tuple[float, float]] = (),
        progress: Progress | None = None,
    ) -> Summary:
        """As ``Summarizer.summarize``; ``VideoError`` also where the process died over the video."""
        options = {"budget": budget, "keep": list(keep), "drop": list(drop)}
        with self._borrowed(f"{video}: the process that read it") as process:
            answer, arrays = process.call(progress, call="summarize", video=os.fspath(video), options=options)
        return _summary(answer["summary"], arrays)

    def extract(self, video: str | os.PathLike[str], *, progress: Progress | None = None) -> Extracted:
        """As ``Summarizer.extract``; ``VideoError`` also where the process died over the video."""
        from vsum_runtime.runtime.extractor import Extracted

        with self._borrowed(f"{video}: the process that read it") as process:
            answer, arrays = process.call(progress, call="extract", video=os.fspath(video))
        return Extracted(**{**answer["extracted"], **arrays, "warnings": tuple(answer["extracted"]["warnings"])})

    def recipe(self) -> Recipe:
        """As ``Summarizer.recipe``."""
        from vsum_runtime.runtime.recipe import Recipe

        with self._borrowed("the process that opened the model") as process:
            answer, _ = process.call(None, call="recipe")
        return Recipe.from_dict(answer["recipe"])

    def write_video(self, summary: Summary, path: Path, *, progress: Progress | None = None, **options: Any) -> Path:
        """As ``Summary.write_video``; ``VideoError`` also where the process died over it."""
        plain, arrays = _plain(summary)
        with self._borrowed(f"{summary.source}: the process that wrote its film", path) as process:
            process.call(progress, arrays, call="write_video", summary=plain, path=str(path), options=options)
        return path

    @contextmanager
    def _borrowed(self, whose: str, target: Path | None = None) -> Iterator[_Process]:
        """A process for one call, which may die of it; what it then leaves of ``target`` goes."""
        process = self._idle.get()
        if process is None or not process.lives():  # one that was killed while it waited is no fault of this call
            process = self._started(process)
        try:
            process.opened()
            yield process
        except _Died:
            how = process.end()
            raise VideoError(f"{whose} died ({how}); nothing of it is kept, and no other video is concerned") from None
        finally:
            if process.in_call:  # an exception came from outside
                process.stop_call()
            lives = process.lives()
            if not lives and target is not None:
                remove_leftovers(target)
            self._idle.put(process if lives else None)

    def _started(self, dead: _Process | None = None) -> _Process:
        if dead is not None:
            self._running.discard(dead)
            dead.end()
        process = _Process(self._options)
        self._running.add(process)
        return process

    def close(self) -> None:
        for process in self._running:
            process.end()

    def __enter__(self) -> SummarizerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """One process, opening the model from now on."""

    def __init__(self, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "vsum_runtime.runtime.summarizer_process"]
        # In a session of its own an interrupt of the terminal does not reach it: whoever started it tells.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, io.BufferedReader(self._process.stdout)  # type: ignore[type-var]
        self._opened: dict[str, Any] = {}
        self.in_call = False
        with suppress(_Died):  # it is dead already, which the first answer will tell
            _send(self._to, {"options": options, "log": _log.getEffectiveLevel()})

    def opened(self) -> dict[str, Any]:
        """What the process says of the model, once it is open."""
        if not self._opened:
            self._opened, _ = self._answer(None)
        return self._opened

    def call(
        self, progress: Progress | None, arrays: dict[str, Any] | None = None, **request: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.in_call = True
        _send(self._to, request, arrays)
        return self._answer(progress)

    def stop_call(self) -> None:
        """Have the call under way end and clean up; kill the process if it does not."""
        Thread(target=self._kill_late, daemon=True).start()
        with suppress(_Died, VsumError):
            _send(self._to, {"call": "stop"})
            self._answer(None)

    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> str:
        """End the process; how it ended."""
        with suppress(OSError):
            self._to.close()
        self.in_call = False
        try:
            code = self._process.wait(_STOPPING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._from.close()
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}: {_CAUSES[name]}" if name in _CAUSES else name

    def _answer(self, progress: Progress | None) -> tuple[dict[str, Any], dict[str, Any]]:
        while True:
            message, arrays = _receive(self._from)
            if "progress" in message:
                if progress is not None:
                    progress(message["progress"])
            elif "log" in message:
                _log.log(message["log"], "%s", message["message"])
            else:
                self.in_call = False
                if "error" in message:
                    raise _error(message)
                return message, arrays

    def _kill_late(self) -> None:
        deadline = time.monotonic() + _STOPPING_S
        while self.in_call and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.in_call:
            self._process.kill()


class _Died(Exception):
    """The process at the other end is gone."""


def _plain(record: Summary | Extracted) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record's fields: those for JSON, and its arrays."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}, arrays


def _summary(plain: dict[str, Any], arrays: dict[str, Any]) -> Summary:
    return Summary(**{**plain, **arrays, "source": Path(plain["source"])})


def _error(message: dict[str, Any]) -> Exception:
    kind = getattr(errors, message["error"], None)
    if isinstance(kind, type) and issubclass(kind, VsumError):
        error = kind.__new__(kind, message["message"])
        vars(error).update(message["fields"])
        return error
    if message["error"] == "ImportError":
        return ModuleNotFoundError(message["message"], name=message["fields"]["name"])
    return VsumError(f"{message['error']}: {message['message']}")


def _send(pipe: IO[bytes], message: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
    packed = b""
    if arrays:
        with io.BytesIO() as file:
            np.savez(file, **arrays)
            packed = file.getvalue()
    data = memoryview(json.dumps({**message, "n_bytes": len(packed)}).encode() + b"\n" + packed)
    try:
        while data:
            data = data[pipe.write(data) :]
    except BrokenPipeError:
        raise _Died from None


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise _Died
    message: dict[str, Any] = json.loads(line)
    packed = pipe.read(message["n_bytes"])
    if len(packed) < message["n_bytes"]:
        raise _Died
    if not packed:
        return message, {}
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return message, {name: file[name] for name in file.files}


class _Stopped(Exception):
    """Raised inside a call that is to stop."""


def main() -> None:
    """The process: open the model, then answer until the standard input ends."""
    from vsum_runtime.runtime.machine import give_back_large_blocks

    give_back_large_blocks()
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not come between messages
    sending = Lock()

    def say(message: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
        with sending, suppress(_Died):
            _send(output, message, arrays)

    source = os.fdopen(os.dup(0), "rb")
    first, _ = _receive(source)
    _log.addHandler(_Forward(say))
    _log.setLevel(first["log"])
    stop = Event()
    calls: SimpleQueue[tuple[dict[str, Any], dict[str, Any]]] = SimpleQueue()
    Thread(target=_listen, args=(source, calls, stop), daemon=True).start()
    try:
        from vsum_runtime.runtime.pipeline import Summarizer

        summarizer = Summarizer(**first["options"])
    except Exception as error:
        say(_told(error))
        return
    say({"bundle": str(summarizer.bundle.path)})
    while True:
        request, arrays = calls.get()
        try:
            say(*_answered(summarizer, request, arrays, _reporter(say, stop)))
        except Exception as error:  # whatever a strange file brings up
            say(_told(error))
        stop.clear()


def _answered(
    summarizer: Any, request: dict[str, Any], arrays: dict[str, Any], progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    if request["call"] == "summarize":
        plain, arrays = _plain(summarizer.summarize(request["video"], progress=progress, **request["options"]))
        return {"summary": plain}, arrays
    if request["call"] == "extract":
        plain, arrays = _plain(summarizer.extract(request["video"], progress=progress))
        return {"extracted": plain}, arrays
    if request["call"] == "recipe":
        return {"recipe": summarizer.recipe.to_dict()}, {}
    summary = _summary(request["summary"], arrays)
    summary.write_video(request["path"], progress=progress, **request["options"])
    return {"done": True}, {}


def _listen(source: IO[bytes], calls: SimpleQueue[tuple[dict[str, Any], dict[str, Any]]], stop: Event) -> None:
    while True:
        try:
            request, arrays = _receive(source)
        except _Died:
            os._exit(0)
        if request["call"] == "stop":
            stop.set()
        else:
            calls.put((request, arrays))


def _reporter(say: Callable[..., None], stop: Event) -> Progress:
    last_s = 0.0

    def report(share: float) -> None:
        nonlocal last_s
        if stop.is_set():
            raise _Stopped
        if (now := time.monotonic()) >= last_s + _REPORT_S:
            last_s = now
            say({"progress": share})

    return report


def _told(error: Exception) -> dict[str, Any]:
    kind = "ImportError" if isinstance(error, ImportError) else type(error).__name__
    fields = {"name": error.name} if isinstance(error, ImportError) else vars(error)
    plain = {name: value for name, value in fields.items() if isinstance(value, str | int | float | None)}
    return {"error": kind, "message": str(error), "fields": plain}


class _Forward(logging.Handler):
    """Sends what is logged to whoever started the process."""

    def __init__(self, say: Callable[..., None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({"log": record.levelno, "message": record.getMessage()})


if __name__ == "__main__":
    main()
