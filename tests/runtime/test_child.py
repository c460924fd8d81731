"""A child process of the server."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

uvloop = pytest.importorskip("uvloop", reason="the server is an extra: vsum-runtime[serve]")

from vsum_runtime.runtime.serve.child import Child  # noqa: E402

ECHO = "import sys; print(sys.stdin.readline().strip().upper(), flush=True); sys.stdin.read()"
_marker: list[Path] = []
os.register_at_fork(after_in_child=lambda: [path.touch() for path in _marker])


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_lines_go_in_and_out_and_no_python_runs_between_fork_and_exec(loop: object, tmp_path: Path) -> None:
    async def talk() -> tuple[bytes, int]:
        child = await Child.start([sys.executable, "-c", ECHO])
        child.write(b"hello\n")
        line = await child.stdout.readline()
        return line, await child.end()

    _marker.append(tmp_path / "ran")
    try:
        with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
            assert runner.run(talk()) == (b"HELLO\n", -9)
    finally:
        _marker.clear()
    assert not (tmp_path / "ran").exists()


def test_what_is_no_program_is_an_error_of_the_system(tmp_path: Path) -> None:
    with asyncio.Runner() as runner, pytest.raises(FileNotFoundError):
        runner.run(Child.start([str(tmp_path / "absent")]))
