"""Parameters of a codec, in the container and inside packets, and what a key picture allows: H.264, HEVC, MPEG-2.

Of other codecs nothing is known here: their key pictures count as whole restarts, their parameters as constant.
"""

from __future__ import annotations

from collections.abc import Callable

START_CODE = b"\0\0\0\1"


def of_container(setup: bytes, codec: str) -> set[bytes]:
    """The parameter sets that a container tells: from its record (ISO 14496-15, 5.3.3.1 and 8.3.3.1), or as in packets.

    Empty where it tells none.
    """
    if length_size(setup, codec) is None:
        return of_packet(setup, setup, codec)
    sets: set[bytes] = set()
    at, groups = (5, 2) if codec == "h264" else (23, setup[22])
    for group in range(groups):
        if codec == "h264":
            count, at = setup[at] & (255 if group else 31), at + 1
        else:
            count, at = int.from_bytes(setup[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(setup[at : at + 2], "big")
            sets.add(setup[at + 2 : at + 2 + size])
            at += 2 + size
    return {unit for unit in sets if unit and _is_parameter_set(unit, codec)}


def of_packet(data: bytes, setup: bytes, codec: str) -> set[bytes]:
    """The parameter sets inside a packet; of MPEG-2 the size, shape and rate of the pictures."""
    if codec == "mpeg2video":
        at = data.find(b"\0\0\1\xb3")
        return {data[at + 4 : at + 8]} if at >= 0 else set()
    if codec not in ("h264", "hevc"):
        return set()
    return {unit for unit in units(data, length_size(setup, codec)) if _is_parameter_set(unit, codec)}


def key_picture(data: bytes, setup: bytes, codec: str) -> tuple[bool, bool]:
    """Whether decoding may begin at a key picture, and whether it may follow pictures of another place.

    H.264 allows both at IDR pictures, and only the first where a message says that decoding recovers at once; a
    picture that is refreshed little by little allows neither.
    """
    if codec != "h264":
        return True, True
    in_packet = units(data, length_size(setup, codec))
    is_idr = any(unit[0] & 31 == 5 for unit in in_packet)
    recovery = max((_frames_to_recovery(unit) for unit in in_packet if unit[0] & 31 == 6), default=0)
    return is_idr or recovery == 0, is_idr


def length_size(setup: bytes, codec: str) -> int | None:
    """Bytes of the length before each unit of H.264 or HEVC; None where start codes part them."""
    if codec == "h264" and len(setup) > 6 and setup[0] == 1:
        return (setup[4] & 3) + 1
    if codec == "hevc" and len(setup) > 22 and setup[0] == 1:
        return (setup[21] & 3) + 1
    return None


def units(data: bytes, size: int | None) -> list[bytes]:
    """The units of a packet, each from its header on (ISO 14496-15, 5.3.3.1, or with start codes)."""
    parts = []
    if size is None:
        parts = [part.rstrip(b"\0") for part in data.split(b"\0\0\1")[1:]]
    else:
        at = 0
        while at + size < len(data):
            end = at + size + int.from_bytes(data[at : at + size], "big")
            parts.append(data[at + size : end])
            at = end
    return [part for part in parts if part]


def rewritten(data: bytes, size: int | None, change: Callable[[bytes], bytes]) -> bytes:
    """A packet with its units changed."""
    parts = [change(unit) for unit in units(data, size)]
    return b"".join((START_CODE if size is None else len(part).to_bytes(size, "big")) + part for part in parts)


def as_splice(data: bytes, size: int | None) -> bytes:
    """An HEVC key picture that may have leading pictures (CRA) -> one without, that ends what came before (BLA).

    HEVC, 7.4.2.2: types 21 and 18; the header of their slices has the same fields.
    """
    return rewritten(
        data, size, lambda unit: bytes([unit[0] & 0x81 | 18 << 1]) + unit[1:] if _type(unit) == 21 else unit
    )


def _type(unit: bytes) -> int:
    return unit[0] >> 1 & 63


def _is_parameter_set(unit: bytes, codec: str) -> bool:
    return unit[0] & 31 in (7, 8) if codec == "h264" else _type(unit) in (32, 33, 34)


def _frames_to_recovery(unit: bytes) -> int:
    """How many pictures a message of recovery (H.264, D.1.8) says it takes; 0 where the unit has none."""
    data, at = unit[1:].replace(b"\0\0\3", b"\0\0"), 0
    while at + 2 < len(data):
        fields = []
        for _ in range(2):  # the type of the message and its size
            value = 0
            while at < len(data) - 1 and data[at] == 255:
                value, at = value + 255, at + 1
            fields.append(value + data[at])
            at = min(at + 1, len(data) - 1)
        kind, size = fields
        if kind == 6:
            bits = f"{int.from_bytes(data[at : at + size], 'big'):0{8 * size}b}"
            zeros = bits.find("1")
            return int(bits[zeros : 2 * zeros + 1], 2) - 1 if zeros >= 0 else 0
        at += size
    return 0


def with_lengths(data: bytes, size: int | None) -> bytes:
    """A packet with four bytes of length before each unit."""
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units(data, size))


def free_number(sets: list[bytes]) -> int:
    """A number that none of some parameter sets of H.264 bears."""
    taken = {_first_number(unit[4:] if unit[0] & 31 == 7 else unit[1:]) for unit in sets}
    return next(number for number in range(1, 32) if number not in taken)


def _first_number(data: bytes) -> int:
    """Exp-Golomb, H.264 9.1."""
    bits = f"{int.from_bytes(data[:8], 'big'):0{8 * len(data[:8])}b}"
    zeros = bits.find("1")
    return int(bits[zeros : 2 * zeros + 1], 2) - 1


def avc_record(sets: list[bytes]) -> bytes:
    """The head of a film of H.264 with some parameter sets, for packets `with_lengths` (ISO 14496-15, 5.3.3.1)."""
    sequences = [unit for unit in sets if unit[0] & 31 == 7]
    pictures = [unit for unit in sets if unit[0] & 31 == 8]
    profile, constraints, _ = max(unit[1:4] for unit in sequences)
    level = max(unit[3] for unit in sequences)
    record = bytes([1, profile, constraints, level, 0xFF, 0xE0 | len(sequences)])
    record += b"".join(len(unit).to_bytes(2, "big") + unit for unit in sequences)
    record += bytes([len(pictures)]) + b"".join(len(unit).to_bytes(2, "big") + unit for unit in pictures)
    return record
