"""A ModelInferRequest as it came -> its tensors, where they lie in the message, and the small rest for protobuf.

Protobuf would copy every tensor twice, and what it makes of a message can be fifty times as large (a field of no bytes
takes two on the wire). So tensors are found by walking over the fields, and the rest is counted before it is parsed.
Source of the format: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

from vsum_runtime.runtime.errors import InputError

REST_FACTOR = 64
"""Memory that the rest may take once it is parsed, in bytes per byte; measured by tests/attack."""

_FIELDS = 100_000
"""At most in one message, those inside inputs included."""
_INPUTS, _RAW = 5, 7
_CONTENTS, _FP32 = 5, 6
_MALFORMED = "message: expected a ModelInferRequest, got bytes that are none"


def split(message: memoryview) -> tuple[bytes, list[memoryview], dict[int, list[memoryview]]]:
    """Take the tensors out of a message.

    Returns
    -------
    the message without them; raw_input_contents; by number of the input, the packed parts of its fp32_contents

    Raises
    ------
    InputError
        no message of protobuf
    """
    rest = bytearray()
    raw: list[memoryview] = []
    typed: dict[int, list[memoryview]] = {}
    n_inputs = 0
    left = iter(range(_FIELDS))
    for field, start, value, end in _fields(message, left):
        if field == _RAW and value < 0:
            raise InputError(_MALFORMED)
        if field == _RAW:
            raw.append(message[value:end])
        elif field == _INPUTS and value >= 0:
            entry, parts = _without_fp32(message[value:end], left)
            rest += _with_length(_INPUTS, entry)
            if parts:
                typed[n_inputs] = parts
            n_inputs += 1
        else:
            rest += message[start:end]
    return bytes(rest), raw, typed


def _without_fp32(entry: memoryview, left: Iterator[int]) -> tuple[bytes, list[memoryview]]:
    """An input without its packed fp32_contents, and those."""
    rest = bytearray()
    parts: list[memoryview] = []
    for field, start, value, end in _fields(entry, left):
        if field != _CONTENTS or value < 0:
            rest += entry[start:end]
            continue
        contents, inside = entry[value:end], bytearray()
        for inner, inner_start, inner_value, inner_end in _fields(contents, left):
            if inner == _FP32 and inner_value >= 0:
                parts.append(contents[inner_value:inner_end])
            else:
                inside += contents[inner_start:inner_end]
        rest += _with_length(_CONTENTS, bytes(inside))
    return bytes(rest), parts


def _fields(data: memoryview, left: Iterator[int]) -> Iterator[tuple[int, int, int, int]]:
    """Of each field its number, where it starts, where its value starts if that has a length, else -1, and its end."""
    at = 0
    while at < len(data):
        if next(left, None) is None:
            raise InputError(f"message: expected at most {_FIELDS} fields; send tensors as raw_input_contents")
        start = at
        key, at = _read_varint(data, at)
        value = -1
        if key & 7 == 0:
            _, at = _read_varint(data, at)
        elif key & 7 == 2:
            size, value = _read_varint(data, at)
            at = value + size
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise InputError(_MALFORMED)
        if at > len(data):
            raise InputError(_MALFORMED)
        yield key >> 3, start, value, at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise InputError(_MALFORMED)


def _with_length(field: int, value: bytes) -> bytes:
    """A field of bytes."""
    found, size = bytearray([field << 3 | 2]), len(value)
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    return bytes([*found, size]) + value
