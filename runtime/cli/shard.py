"""A share of many videos: which of them this process takes, where several work on one list without talking.

A video belongs to the shard that a hash of its name gives, whatever machine looks: the shards of one count are the
whole list, and no two have a video in common. Videos that are added later move no other.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

_SCHEDULERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", None, "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("JOB_COMPLETION_INDEX", None, None),  # of a Kubernetes Job, which tells its pods no count
)
"""Variables that schedulers set: this task's number, the first one's (None: 0), and how many there are."""


@dataclass(frozen=True)
class Shard:
    """One of several shares."""

    number: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"

    def holds(self, name: str) -> bool:
        """Whether a video of this name belongs to the shard."""
        return (
            int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) % self.count + 1 == self.number
        )


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Argument type: ``3/64``; or ``auto/64`` or ``auto``, where a scheduler tells the number, or both.

    >>> parse("3/64")
    Shard(number=3, count=64)
    >>> parse("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "5"})
    Shard(number=1, count=5)
    """
    match = re.fullmatch(r"(\d+)/(\d+)|auto(?:/(\d+))?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a share such as 3/64, or auto under a scheduler, got {text!r}")
    number, count = (match[1], match[2]) if match[1] else _of_scheduler(match[3], environment)
    if not 1 <= int(number) <= int(count):
        raise argparse.ArgumentTypeError(f"expected a share from 1/{count} to {count}/{count}, got {number}/{count}")
    return Shard(int(number), int(count))


def _of_scheduler(count: str | None, environment: Mapping[str, str]) -> tuple[str, str]:
    for variable, first, how_many in _SCHEDULERS:
        if variable not in environment:
            continue
        count = count or environment.get(how_many or "")
        if count is None:
            raise argparse.ArgumentTypeError(f"{variable} tells the number of this task alone; write auto/COUNT")
        return str(int(environment[variable]) - int(environment.get(first or "", 0)) + 1), count
    names = ", ".join(variable for variable, _, _ in _SCHEDULERS)
    raise argparse.ArgumentTypeError(f"auto: expected one of {names} in the environment, found none; write 3/64")
