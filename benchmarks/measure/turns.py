"""Timing calls in this process: repeated, and several of them in turn, so that a noisy machine is noisy for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_REST_S = 0.06


def in_turn(calls: Mapping[str, Callable[[], Any]], *, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Seconds of single calls, in `rounds` turns of at least `least_s` each; a first call of each is not counted.

    Before a turn the threads of the one before come to rest: some libraries' threads spin for 40 ms after a call.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(_REST_S)
            began = time.perf_counter()
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                seconds[name].append(now - start)
                if now - began >= least_s:
                    break
    return seconds


def repeated(call: Callable[[], T], *, at_most_s: float = 2.0, runs: int = 15) -> tuple[list[float], T]:
    """Seconds of several runs, after one that is not counted if it was short; and the result."""
    began = time.perf_counter()
    result = call()
    seconds = [time.perf_counter() - began]
    if seconds[0] < at_most_s:
        seconds.clear()
        while len(seconds) < runs and (len(seconds) < 3 or sum(seconds) < at_most_s):
            began = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - began)
    return seconds, result
