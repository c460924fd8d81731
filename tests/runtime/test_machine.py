"""Limits of containers, read from folders laid out as Linux lays them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vsum_runtime.runtime.machine import cpu_count, memory_bytes

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")


def laid_out(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "own").write_text(own)
    return folder, folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/only/on/the/host\n", {"cpu.max": "100000 100000"}, 1),
        ("3:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "99900000 100000"}, None),
        ("", {}, None),
    ],
)
def test_processors(tmp_path: Path, own: str, files: dict[str, str], expected: int | None) -> None:
    assert cpu_count(*laid_out(tmp_path, own, files)) == (expected or len(os.sched_getaffinity(0)))


def test_memory_is_the_least_of_all_limits(tmp_path: Path) -> None:
    machine = memory_bytes(*laid_out(tmp_path / "none", "", {"x": ""}))
    assert machine is not None
    limited = laid_out(tmp_path / "two", "0::/a\n", {"a/memory.max": "5000000", "memory.max": "max"})
    assert memory_bytes(*limited) == 5_000_000
    huge = laid_out(tmp_path / "v1", "4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"})
    assert memory_bytes(*huge) == machine


_RESIDENT_AFTER_FREE = """
import ctypes
import vsum_runtime.runtime.machine
getattr(vsum_runtime.runtime.machine, {name!r})()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def block(n):
    pointer = libc.malloc(n)
    ctypes.memset(pointer, 1, n)
    return pointer

libc.free(ctypes.c_void_p(block(30 << 20)))  # glibc would now keep smaller blocks
large, small = block(20 << 20), block(1000)  # the small one lies above the large one in a heap
libc.free(ctypes.c_void_p(small if {small_too} else None))
before = resident()
libc.free(ctypes.c_void_p(large))
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("name", ["give_back_large_blocks", "keep_freed_memory"])
def test_large_blocks_are_given_back_by_programs_and_kept_by_servers(name: str) -> None:
    keeps = name == "keep_freed_memory"
    script = _RESIDENT_AFTER_FREE.format(name=name, small_too=keeps)  # by itself glibc would trim the heap's end
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 1 << 20 if keeps else int(child.stdout) > 19 << 20
