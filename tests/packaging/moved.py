"""Which releases differ between a lock and a newer resolution: ``moved.py locks/test.txt newest.txt``."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def releases(text: str) -> dict[str, set[str]]:
    """Package -> releases pinned, several where the Python decides."""
    pinned: dict[str, set[str]] = {}
    for name, release in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE):
        pinned.setdefault(name, set()).add(release)
    return pinned


def moved(lock: str, newest: str) -> list[str]:
    """One line for each package whose newest release is not in the lock, or that only one of the two has."""
    locked, fresh = releases(lock), releases(newest)
    return [
        f"{name:<40} {', '.join(sorted(locked.get(name, {'-'})))} -> {', '.join(sorted(fresh[name]))}"
        for name in sorted(fresh)
        if not fresh[name] <= locked.get(name, set())
    ]


if __name__ == "__main__":
    lines = moved(Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_text())
    sys.stdout.write("\n".join(lines or ["nothing has moved since the lock"]) + "\n")
