"""A call in a fresh process, with its peak memory.

    outcome = in_fresh_process(summarize, "film.mp4")
    outcome.result, outcome.peak_bytes

The function stands at the top of a module, its arguments and its result are plain JSON. The child imports that module
and nothing else of this project, so its memory and its first call are its own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a call gave, and what its process took from its start to the end of the call."""

    result: Any
    peak_bytes: int | None
    """Largest resident memory, as the kernel counts it; None where it does not tell."""
    processor_s: float
    """User and system time, of children that ended too."""


class ChildError(RuntimeError):
    """The process failed; the message is the end of what it wrote."""


def in_fresh_process(
    call: Callable[..., Any], *arguments: Any, timeout_s: float | None = None, environment: Mapping[str, str] = {}
) -> Outcome:
    """Call a function with these arguments in a Python process of its own.

    Raises
    ------
    ChildError                   the process ended with another status than 0
    subprocess.TimeoutExpired    after `timeout_s`, the process being killed
    """
    spec = sys.modules[call.__module__].__spec__  # the name of a module that runs as __main__ is there alone
    assert spec is not None
    name = f"{spec.name.removesuffix('.__main__')}:{call.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.measure.process", name, json.dumps(arguments)]
    child = subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if child.returncode:
        last = child.stderr.strip()[-2000:] or f"the process ended with status {child.returncode}"
        raise ChildError(last)
    return Outcome(**json.loads(child.stdout.splitlines()[-1]))


def peak_bytes() -> int | None:
    """Largest resident memory of this process until now; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> int:
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))
    times = os.times()
    processor_s = times.user + times.system + times.children_user + times.children_system
    print()  # ends a line that the call may have left open
    print(json.dumps({"result": result, "peak_bytes": peak_bytes(), "processor_s": processor_s}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
