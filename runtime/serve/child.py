"""A child process with asyncio's streams, started by `subprocess` and not by the event loop.

uvloop forks, and the copy of this process runs Python's after-fork hooks before it becomes the other program. They free
objects of threads that the copy does not have; one that joins worker threads of its own then waits for ever, and so
does the event loop, which waits for the copy. `subprocess` runs no Python code in between.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence


class Child:
    """A running process: lines in, lines out."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: asyncio.WriteTransport,
        reading: asyncio.ReadTransport,
        stdout: asyncio.StreamReader,
    ) -> None:
        self._process, self._stdin, self._reading = process, stdin, reading
        self.stdout = stdout

    @classmethod
    async def start(cls, command: Sequence[str]) -> Child:
        """Start a process whose errors are not shown.

        Raises
        ------
        OSError
            it cannot be started
        """
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0)
        loop, stdout = asyncio.get_running_loop(), asyncio.StreamReader()
        try:
            stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
            reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), process.stdout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return cls(process, stdin, reading, stdout)

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, data: bytes) -> None:
        """Send to its standard input, which ends when this process does."""
        self._stdin.write(data)

    async def end(self) -> int:
        """Kill it if it still runs, and give its exit code."""
        if self._process.poll() is None:
            self._process.kill()
        return await self.wait()

    async def wait(self) -> int:
        """Wait until it has ended, and give its exit code."""
        code = await asyncio.to_thread(self._process.wait)
        self._stdin.close()
        self._reading.close()
        return code
