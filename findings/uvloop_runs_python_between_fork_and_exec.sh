#!/usr/bin/env bash
# uvloop: starting a process runs Python's after-fork hooks in the child, before it becomes the other program.
# Expected: none run, as with asyncio's own event loop, whose child is started by `subprocess`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "uvloop==0.23.0"
"$folder/venv/bin/python" - <<'PY'
import asyncio
import os
import sys

import uvloop

print("Python", sys.version.split()[0], "uvloop", uvloop.__version__)
reading, writing = os.pipe()
os.set_blocking(reading, False)
os.register_at_fork(after_in_child=lambda: os.write(writing, b"hook "))


async def start() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


seen = {}
for name, loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(start())
    try:
        seen[name] = os.read(reading, 100).decode()
    except BlockingIOError:
        seen[name] = ""
print("expected:", {"asyncio": "", "uvloop": ""})
print("seen:    ", seen)
raise SystemExit(0 if seen == {"asyncio": "", "uvloop": "hook "} else 1)
PY
