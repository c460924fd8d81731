"""A few hundred damaged inputs of each reader of foreign bytes; ``make fuzz`` tries millions."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")

from tests.fuzz.targets import TARGETS


def damaged(seed: bytes, draw: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(draw.randint(1, 8)):
        start = draw.randrange(len(data) + 1)
        change = draw.choice(["byte", "cut", "copy", "number"])
        if change == "byte" and start < len(data):
            data[start] = draw.randrange(256)
        elif change == "cut":
            del data[start : start + draw.choice([1, 4, 100])]
        elif change == "copy":
            data[start:start] = data[max(0, start - 16) : start]
        elif change == "number":
            data[start : start + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"-1", b"1e999", b"NaN"])
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_raise_nothing_but_what_is_documented(name: str) -> None:
    target, draw = TARGETS[name], random.Random(0)
    for seed in target.seeds:
        target.try_it(seed)
        for _ in range(300 // len(target.seeds)):
            target.try_it(damaged(seed, draw))
