"""MP3 packets that do not start where their sound starts: the bit reservoir at a cut (ISO 11172-3, 2.4.2.7).

An MP3 packet may begin its data in the packets before it, up to 511 bytes back. After a cut those are others, and
several packets would be lost. The first packet of a piece is therefore replaced by a silent one of the highest bit
rate, whose unused space holds the bytes that the following packets refer to.
"""

from __future__ import annotations

from typing import Any

import av

_MOST_BYTES = 511


class Mp3Reservoir:
    """Follows the packets of one stream."""

    def __init__(self) -> None:
        self._bytes = b""

    def filled(self, packet: Any, *, starts: bool) -> Any:
        """A packet, or where a piece `starts` with one that needs those before it, a silent one in its place."""
        data = bytes(packet)
        side_at = _side_at(data)
        if side_at is None:
            return packet
        main_at = side_at + _side_size(data)
        self._bytes = (self._bytes + data[main_at:])[-_MOST_BYTES:]
        begins_before = data[side_at] if _is_half_rate(data) else data[side_at] << 1 | data[side_at + 1] >> 7
        if not starts or begins_before == 0:
            return packet
        silent = av.Packet(_silent(data, self._bytes))
        silent.pts, silent.dts, silent.duration = packet.pts, packet.dts, packet.duration
        silent.is_keyframe = True
        return silent


def _is_half_rate(data: bytes) -> bool:
    return not data[1] & 8


def _side_at(data: bytes) -> int | None:
    """Where the side information starts; None in what is no packet of layer III."""
    if len(data) < 40 or data[0] != 0xFF or data[1] & 0xE6 != 0xE2:
        return None
    return 4 if data[1] & 1 else 6


def _side_size(data: bytes) -> int:
    is_mono = data[3] >> 6 == 3
    return (9 if is_mono else 17) if _is_half_rate(data) else (17 if is_mono else 32)


def _silent(data: bytes, reservoir: bytes) -> bytes:
    """A packet of the format of another, without sound, that ends with some bytes."""
    rate_hz = (44100, 48000, 32000)[data[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[data[1] >> 3 & 3]
    size = 72 * 160_000 // rate_hz if _is_half_rate(data) else 144 * 320_000 // rate_hz
    header = bytes([data[0], data[1] | 1, 14 << 4 | data[2] & 0x0D, data[3]])  # no checksum, rate 14, no padding
    return header + bytes(size - len(header) - len(reservoir)) + reservoir
