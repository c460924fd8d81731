"""Which shapes an engine is built for, and which of them serves a request.

A TensorRT engine reserves the memory of a profile's largest shape whatever the request, so there are several profiles
of about equal ``batch x time``, and none with the largest batch and the longest video together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsum_runtime.runtime.errors import InputError


@dataclass(frozen=True)
class Profile:
    """Shapes batch x time that one set of kernels serves; the smallest is always 1 x 1."""

    best: tuple[int, int]
    """The shape to be fastest at."""
    most: tuple[int, int]
    """The largest batch, and the longest video."""

    def holds(self, n_videos: int, n_steps: int) -> bool:
        return n_videos <= self.most[0] and n_steps <= self.most[1]


PROFILES: tuple[Profile, ...] = (
    Profile(best=(1, 320), most=(1, 2048)),
    Profile(best=(8, 320), most=(32, 512)),
    Profile(best=(4, 1000), most=(8, 2048)),
    Profile(best=(1, 3000), most=(1, 10_000)),
)
"""Cheapest first. 10,000 steps are 83 minutes at two steps per second."""


def choose_profile(profiles: Sequence[Profile], n_videos: int, n_steps: int) -> int | None:
    """Index of the first profile that holds a request, or None.

    >>> choose_profile(PROFILES, 1, 320), choose_profile(PROFILES, 8, 900), choose_profile(PROFILES, 1, 20_000)
    (0, 2, None)
    """
    return next((i for i, profile in enumerate(profiles) if profile.holds(n_videos, n_steps)), None)


def rows_per_call(profiles: Sequence[Profile], n_steps: int) -> int:
    """Largest batch of videos of this length that some profile holds.

    Raises
    ------
    InputError
        no profile holds even one

    >>> rows_per_call(PROFILES, 500), rows_per_call(PROFILES, 2000), rows_per_call(PROFILES, 9000)
    (32, 8, 1)
    """
    fitting = [profile.most[0] for profile in profiles if profile.most[1] >= n_steps]
    if not fitting:
        longest = max(profile.most[1] for profile in profiles)
        raise InputError(
            f"time: expected at most {longest} steps, the longest this engine was built for, got {n_steps}; "
            f"sample fewer steps, use backend ort-cuda or ort-cpu, or build with --max-steps {n_steps}"
        )
    return max(fitting)


def bucket(profile: Profile, n_videos: int, n_steps: int) -> tuple[int, int]:
    """The shape a request is padded to, so that few CUDA graphs serve all requests.

    Batches grow to a power of two, and time to a multiple of a sixteenth to an eighth of itself, at least 16.

    >>> bucket(PROFILES[1], 5, 201), bucket(PROFILES[3], 1, 4700)
    ((8, 208), (1, 5120))
    """
    step = max(16, 1 << max(0, (n_steps - 1).bit_length() - 4))
    videos = 1 << (n_videos - 1).bit_length()
    return min(videos, profile.most[0]), min(-(-n_steps // step) * step, profile.most[1])
