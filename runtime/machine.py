"""What this process may use of the machine: processors and memory, within the limits of its container."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cpu_count(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Processors this process may use: those it is bound to, or fewer where a container's quota is less.

    A quota of 1.5 processors counts as 2: two threads then use it up, one would leave a third of it.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _folders(cgroups, own, "cpu"):
        pair = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[1]) > 0:
            quotas.append(math.ceil(int(pair[0]) / int(pair[1])))
    return max(1, min([bound, *quotas]))


def memory_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int | None:
    """Memory this process may use, all of the machine's or a container's limit; None where neither is known."""
    limits = []
    for folder in _folders(cgroups, own, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        limits += [int(word) for word in limit if word.isdigit()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def give_back_large_blocks() -> None:
    """Have glibc return freed blocks of 1 MiB and more to the system at once; for programs, not for a library to call.

    By itself it raises that bound to the largest block that was ever freed, up to 32 MiB, and keeps what is below: with
    one pool per thread, the stages of the pipeline then hold 100 MB that none of them uses.
    """
    _mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def keep_freed_memory() -> None:
    """Have glibc use freed memory again, up to 256 MiB, and give none back; for servers, not for a library to call.

    Large arrays that come and go are else made of new pages each time. The first touch of a page costs more than to
    fill it, in a virtual machine several times more: a request of 1.6 MB over gRPC took 14 ms and then 9 ms.
    """
    _mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest there is
    _mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def _mallopt(parameter: int, value: int) -> None:
    """Set a parameter of the C library's allocator where that is glibc's."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(parameter, value)


def _folders(cgroups: Path, own: Path, controller: str) -> Iterator[Path]:
    """The control groups this process is in, innermost first: version 2, or version 1's tree of one controller.

    A line of `own` is ``number:controllers:/path``; inside a container the path may be one that only the host has,
    and the container's own group is then the root.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        inner = root / path.lstrip("/")
        yield from [inner, *(parent for parent in inner.parents if parent.is_relative_to(root))]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
