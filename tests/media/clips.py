"""Clips that carry their truth, and a reader of films made from them; both by PyAV alone, never through the product.

Picture n shows n in 16 bits along its top rows (white 1, black 0, lowest bit left). The sound's frequency at source
time t is 300 + 200 t Hz in every channel, so that a few hundredths of a second of it tell where they come from.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

AV1 = Path(__file__).parent / "av1.mkv"
"""The 120 pictures of `write_clip` as SVT-AV1 coded them once: the encoder, the only one in PyAV's wheels, may hang."""
BITS = 16
_BAR_ROWS = 16
_BASE_HZ, _SLOPE_HZ_PER_S = 300.0, 200.0
_WINDOW_S = 0.03


def write_clip(
    path: Path,
    n_pictures: int = 120,
    *,
    rate: Fraction | int = 30,
    times_s: Sequence[float | Fraction] | None = None,
    first_number: int = 0,
    size: tuple[int, int] = (256, 144),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    tag: str | None = None,
    shape: Fraction | None = None,
    tick: Fraction | None = None,
    sound: str | None = "aac",
    sound_rate: int = 48000,
    layout: str = "mono",
    sound_bit_rate: int | None = None,
    sound_from_s: float = 0.0,
    sound_until_s: float | None = None,
    sound_ahead_s: float = 0.0,
    start_s: float = 0.0,
    container: dict[str, str] | None = None,
    video_first: bool = False,
) -> Path:
    """Write a clip with numbered pictures and ruler sound.

    Parameters
    ----------
    times_s : presentation time of each picture; default: at a steady rate
    codec : encoder of the pictures, or av1, whose pictures were coded beforehand
    options : of the video encoder; default for libx264 and libx265: quick, a group of 30 pictures, no scene cuts
    tag : sample entry in MP4 and QuickTime, such as hvc1
    shape : width of a pixel over its height
    tick : of the pictures' clock; default: one picture, or 1/90000 s with `times_s`
    sound : encoder of the sound, or None
    sound_from_s, sound_until_s : where the sound begins and ends; default: with the pictures
    sound_ahead_s : source time of the sound at the time of picture 0: not 0 makes sound of another place
    start_s : added to all time stamps
    container : options of the muxer
    video_first : all pictures come before all sound in the file, instead of side by side
    """
    rate = Fraction(rate)
    moments = [Fraction(t) for t in times_s] if times_s is not None else [i / rate for i in range(n_pictures)]
    end_s = float(moments[-1] + 1 / rate)
    clock = tick or (1 / rate if times_s is None else Fraction(1, 90000))
    with av.open(str(path), "w", container_options=container or {}) as film:
        if codec == "av1":
            encode = _kept_av1(film, size, pix_fmt)
        else:
            encode = _encoder(film, codec, rate, size, pix_fmt, clock, options or {}, tag, shape)
        audio: Any = None
        pieces: Iterable[Any] = ()
        if sound is not None:
            audio = film.add_stream(sound, rate=sound_rate, layout=layout)
            if sound_bit_rate is not None or sound == "aac":
                audio.codec_context.bit_rate = sound_bit_rate or 128_000
            if sound in ("vorbis", "opus"):
                audio.options = {"strict": "experimental"}
            until_s = end_s if sound_until_s is None else sound_until_s
            pieces = _ruler_frames(audio, sound_from_s, until_s, sound_ahead_s, start_s)
        sounds = iter(pieces)
        waiting = next(sounds, None)
        for index, moment in enumerate(moments):
            picture = av.VideoFrame.from_ndarray(_picture(index + first_number, float(moment), size), format="yuv420p")
            if pix_fmt != "yuv420p":
                picture = picture.reformat(format=pix_fmt)
            picture.pts, picture.time_base = round((moment + Fraction(start_s)) / clock), clock
            film.mux(encode(picture))
            while waiting is not None and not video_first and waiting[0] <= moment:
                film.mux(audio.encode(waiting[1]))
                waiting = next(sounds, None)
        film.mux(encode(None))
        while waiting is not None:
            film.mux(audio.encode(waiting[1]))
            waiting = next(sounds, None)
        if audio is not None:
            film.mux(audio.encode(None))
    return path


def _encoder(
    film: Any,
    codec: str,
    rate: Fraction,
    size: tuple[int, int],
    pix_fmt: str,
    clock: Fraction,
    options: dict[str, str],
    tag: str | None,
    shape: Fraction | None,
) -> Callable[[Any], Any]:
    video = film.add_stream(codec, rate=rate)
    video.width, video.height, video.pix_fmt = *size, pix_fmt
    video.codec_context.time_base = clock
    video.options = _encoder_options(codec) | options
    if codec not in ("libx264", "libx265", "ffv1"):
        video.codec_context.bit_rate = 3_000_000
    if "g" in video.options:
        video.codec_context.gop_size = int(video.options["g"])
    if "bf" in video.options:
        video.codec_context.max_b_frames = int(video.options["bf"])
    if tag is not None:
        video.codec_context.codec_tag = tag
    if shape is not None:
        video.codec_context.sample_aspect_ratio = shape
    return video.encode  # type: ignore[no-any-return]


def _kept_av1(film: Any, size: tuple[int, int], pix_fmt: str) -> Callable[[Any], Any]:
    """The first 120 pictures as SVT-AV1 coded them once: the only AV1 encoder in PyAV's wheels, it sometimes hangs."""
    assert (size, pix_fmt) == ((256, 144), "yuv420p")
    with av.open(str(Path(__file__).parent / "av1.mkv")) as kept:
        video = film.add_stream_from_template(kept.streams.video[0], opaque=True)
        packets = iter([packet for packet in kept.demux(video=0) if packet.size])

    def encode(picture: Any) -> Any:
        if picture is None:
            return []
        packet = next(packets)
        packet.stream, packet.time_base = video, picture.time_base
        packet.pts = packet.dts = picture.pts
        return packet

    return encode


def _encoder_options(codec: str) -> dict[str, str]:
    if codec == "libx264":
        return {"crf": "18", "preset": "veryfast", "g": "30", "sc_threshold": "0"}
    if codec == "libx265":
        return {"crf": "18", "preset": "ultrafast", "x265-params": "keyint=30:scenecut=0:log-level=none:pools=1"}
    if codec in ("libvpx", "libvpx-vp9"):
        return {"deadline": "realtime", "cpu-used": "8", "g": "30"}
    return {"g": "30"} if codec in ("mpeg2video", "mpeg4") else {}


def _picture(number: int, time_s: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture yuv420p [H * 3 / 2, W]: its number, and below it a scene that changes every 3 s, with movement."""
    width, height = size
    scene = np.random.default_rng(int(time_s / 3) + 1)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    luma = 60 + 100 * scene.random() + 60 * np.sin(columns * 0.02 * scene.integers(1, 5) + rows * 0.03)
    luma = np.clip(luma, 16, 235).astype(np.uint8)
    side = max(8, height // 6)
    left = int(time_s * 60) % (width - side)
    luma[height // 2 : height // 2 + side, left : left + side] = 235
    bits = number >> (columns * BITS // width) & 1
    luma[:_BAR_ROWS] = np.where(bits, 235, 16)
    tints = scene.integers(100, 156, 2, dtype=np.uint8)
    return np.concatenate([luma, np.repeat(tints, width * height // 4).reshape(-1, width)])


def _ruler_frames(audio: Any, from_s: float, until_s: float, ahead_s: float, start_s: float) -> Iterable[Any]:
    """(time on the pictures' clock, frame) of the sound."""
    rate = audio.codec_context.sample_rate
    first, end = round(from_s * rate), round(until_s * rate)
    form = audio.codec_context.format.name
    layout = audio.codec_context.layout.name
    channels = audio.codec_context.layout.nb_channels
    for at in range(first, end, 1024):
        t = np.arange(at, min(at + 1024, end)) / rate + ahead_s
        wave = 0.4 * np.sin(2 * np.pi * (_BASE_HZ * t + _SLOPE_HZ_PER_S / 2 * t * t))
        frame = av.AudioFrame.from_ndarray(np.tile(wave.astype(np.float32), (channels, 1)), "fltp", layout)
        frame.sample_rate = rate
        frame.pts, frame.time_base = at + round(start_s * rate), Fraction(1, rate)
        if form != "fltp":
            converter = av.AudioResampler(form, layout, rate)
            converted = converter.resample(frame)
            converted[0].pts, converted[0].time_base = frame.pts, frame.time_base
            frame = converted[0]
        yield at / rate, frame


@dataclass
class Film:
    """What a file shows and lets hear."""

    numbers: list[int]
    """Of the pictures, in the order in which they are shown."""
    times_s: NDArray[np.float64]
    """[N + 1] when each is shown, on the file's clock, and the end of the last one."""
    sound: NDArray[np.float32]
    """Mono, from time `sound_start_s` of the file's clock; zero where there is none."""
    sound_rate: int
    sound_start_s: float
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) of each picture."""
    shape: Fraction | None = None
    """Width of a pixel over its height, as told by the container or else by the codec."""

    def heard_at(self, time_s: float) -> float | None:
        """Source time of the sound around a time of the film; None where it is silent."""
        half = _WINDOW_S / 2
        time_s -= self.sound_start_s
        start, end = round((time_s - half) * self.sound_rate), round((time_s + half) * self.sound_rate)
        part = self.sound[max(0, start) : max(0, end)]
        if len(part) < 0.6 * _WINDOW_S * self.sound_rate or np.sqrt((part**2).mean()) < 0.02:
            return None
        n = 1 << 13
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), n))
        peak = int(spectrum[1:-1].argmax()) + 1
        low, mid, high = np.log(spectrum[peak - 1 : peak + 2] + 1e-12)
        peak_at = peak + 0.5 * (low - high) / (low - 2 * mid + high)
        return float((peak_at * self.sound_rate / n - _BASE_HZ) / _SLOPE_HZ_PER_S)


@dataclass
class Check:
    """How a film differs from what was asked for."""

    missing: list[int]
    """Numbers of pictures that were asked for and are not shown."""
    extra: int
    """Pictures that were not asked for."""
    steps_back: int
    """Pictures whose number is not above the one before."""
    silent: list[int]
    """Numbers of pictures without sound."""
    heard: list[int]
    """Numbers of pictures with sound."""
    av_ms: NDArray[np.float64]
    """By how much the sound of each of them comes from later in the source than the picture."""
    numbers: list[int]
    """Of all pictures, in the order in which they are shown."""
    duration_s: float
    """From the start of the first to the end of the last picture."""

    @property
    def worst_av_ms(self) -> float:
        return float(np.abs(self.av_ms).max()) if len(self.av_ms) else float("nan")


def read_film(path: Path, *, sound: int = 0) -> Film:
    """Decode a film with PyAV."""
    numbers, times, sizes = [], [], []
    end_s = 0.0
    shape = None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shape = stream.sample_aspect_ratio
        for frame in container.decode(stream):
            luma = frame.to_ndarray(format="gray")
            numbers.append(read_number(luma))
            times.append(float(frame.pts * stream.time_base))
            sizes.append((frame.width, frame.height))
            usual = frame.duration * stream.time_base if frame.duration else 1 / (stream.average_rate or 25)
            end_s = times[-1] + float(usual)
    samples, rate, start_s = _read_sound(path, sound)
    return Film(numbers, np.array([*times, end_s]), samples, rate, start_s, sizes, shape)


def read_number(luma: NDArray[np.uint8]) -> int:
    """The number that a picture [H, W] shows."""
    width = luma.shape[1] / BITS
    bars = [luma[3:13, int((bit + 0.25) * width) : int((bit + 0.75) * width)].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, level in enumerate(bars) if level > 125)


def _read_sound(path: Path, index: int) -> tuple[NDArray[np.float32], int, float]:
    placed: list[tuple[int, NDArray[np.float32]]] = []
    rate = 48000
    with av.open(str(path)) as container:
        if len(container.streams.audio) <= index:
            return np.zeros(0, np.float32), rate, 0.0
        stream = container.streams.audio[index]
        rate = stream.codec_context.sample_rate
        expected = None
        for frame in container.decode(stream):
            (plain,) = av.AudioResampler("fltp", frame.layout.name, frame.sample_rate).resample(frame)
            at = round(frame.pts * stream.time_base * rate)
            if expected is not None and abs(at - expected) < rate // 500:  # clocks of milliseconds round
                at = expected
            placed.append((at, plain.to_ndarray().mean(axis=0)))
            expected = at + frame.samples
    first = min((at for at, _ in placed), default=0)
    samples = np.zeros(max((at + len(part) - first for at, part in placed), default=0), np.float32)
    for at, part in placed:
        samples[at - first : at - first + len(part)] = part
    return samples, rate, first / rate


def check_film(
    path: Path,
    asked: Iterable[Sequence[int]],
    *,
    rate: Fraction | int = 30,
    first_number: int = 0,
    sound: int = 0,
) -> Check:
    """Compare a film with the half-open ranges of picture numbers that were asked for."""
    film = read_film(path, sound=sound)
    wanted = {number for start, end in asked for number in range(start, end)}
    silent, heard_numbers, differences = [], [], []
    for number, start, end in zip(film.numbers, film.times_s[:-1], film.times_s[1:], strict=True):
        half = min((end - start) / 2, 0.5 / float(rate))
        heard = film.heard_at(start + half)
        if heard is None:
            silent.append(number)
        else:
            heard_numbers.append(number)
            differences.append(1000 * (heard - (number - first_number) / float(rate) - half))
    return Check(
        missing=sorted(wanted - set(film.numbers)),
        extra=sum(number not in wanted for number in film.numbers),
        steps_back=sum(b <= a for a, b in zip(film.numbers, film.numbers[1:], strict=False)),
        silent=silent,
        heard=heard_numbers,
        av_ms=np.array(differences),
        numbers=film.numbers,
        duration_s=float(film.times_s[-1] - film.times_s[0]),
    )


def trimmed(path: Path, out: Path, from_s: float) -> Path:
    """A copy that an edit list starts later, inside a group of pictures, as the trim of a telephone makes it."""
    with av.open(str(path)) as source, av.open(str(out), "w") as film:
        video = source.streams.video[0]
        keys = [packet.pts * packet.time_base for packet in source.demux(video) if packet.is_keyframe]
        start = max(key for key in keys if key <= from_s)
        source.seek(0)
        copies = {stream.index: film.add_stream_from_template(stream, opaque=True) for stream in source.streams}
        for packet in source.demux():
            if packet.size and packet.pts * packet.time_base >= (start if packet.stream is video else from_s):
                shift = round(Fraction(from_s) / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - shift,
                    packet.dts - shift,
                    copies[packet.stream_index],
                )
                film.mux(packet)
    return out


def joined(paths: Iterable[Path], out: Path) -> Path:
    """Transport streams one after the other, as recorders and download tools join them."""
    out.write_bytes(b"".join(path.read_bytes() for path in paths))
    return out


def two_programs(first: Path, second: Path, out: Path) -> Path:
    """Two transport streams, as FFmpeg writes them, side by side as two programmes of one."""
    moved = {0x1000: 0x1010, 0x0100: 0x0110, 0x0101: 0x0111}
    others = []
    for packet in _ts_packets(second):
        pid = int.from_bytes(packet[1:3], "big") & 0x1FFF
        if pid not in moved:
            continue
        packet[1:3] = (int.from_bytes(packet[1:3], "big") & 0xE000 | moved[pid]).to_bytes(2, "big")
        if pid == 0x1000:  # the programme map: its number, the clock's stream and the streams
            table = packet[5 : 5 + 3 + (int.from_bytes(packet[6:8], "big") & 0xFFF) - 4]
            table[3:5] = b"\0\2"
            at = 12 + (int.from_bytes(table[10:12], "big") & 0xFFF)
            for place in (8, *_streams(table, at)):
                old = int.from_bytes(table[place : place + 2], "big")
                table[place : place + 2] = (old & 0xE000 | moved[old & 0x1FFF]).to_bytes(2, "big")
            packet[5 : 5 + len(table) + 4] = table + _crc(table)
        others.append(packet)
    table = bytearray(b"\0\xb0\x11\0\1\xc1\0\0" + b"\0\1\xf0\0" + b"\0\2\xf0\x10")
    programs = table + _crc(table)
    merged = []
    ours = list(_ts_packets(first))
    for index, packet in enumerate(ours):
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == 0:
            packet[5:] = programs + b"\xff" * (183 - len(programs))
        merged.append(packet)
        share = len(others) / (len(ours) - 3)  # the first one's tables come first
        merged += others[round(max(0, index - 3) * share) : round(max(0, index - 2) * share)]
    out.write_bytes(b"".join(merged))
    return out


def _ts_packets(path: Path) -> Iterable[bytearray]:
    data = path.read_bytes()
    for at in range(0, len(data), 188):
        packet = bytearray(data[at : at + 188])
        if int.from_bytes(packet[1:3], "big") & 0x1FFF != 0x11:  # the service description names one programme only
            yield packet


def _streams(table: bytearray, at: int) -> Iterable[int]:
    while at < len(table):
        yield at + 1
        at += 5 + (int.from_bytes(table[at + 3 : at + 5], "big") & 0xFFF)


def _crc(data: bytes | bytearray) -> bytes:
    """CRC-32 of transport streams (ISO 13818-1, annex A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 1 << 31 else 0)) & 0xFFFFFFFF
    return value.to_bytes(4, "big")


def with_box(path: Path, out: Path, parents: Sequence[str], box: bytes) -> Path:
    """A copy of an MP4, its movie header behind the media, with a box appended to the last of nested ones."""
    data = bytearray(path.read_bytes())
    assert data.rindex(b"moov") > data.index(b"mdat")
    start, end = 0, len(data)
    sizes = []
    for parent in parents:
        at = start
        while bytes(data[at + 4 : at + 8]) != parent.encode():
            at += struct.unpack(">I", data[at : at + 4])[0]
            assert at < end, f"no box {parent}"
        sizes.append(at)
        end = at + struct.unpack(">I", data[at : at + 4])[0]
        start = at + 8 + {"stsd": 8, "avc1": 78, "hvc1": 78}.get(parent, 0)
    for at in sizes:
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + len(box))
    data[end:end] = box
    out.write_bytes(data)
    return out


def luma_by_number(path: Path) -> dict[int, NDArray[np.uint8]]:
    """The brightness of every picture of a film, by its number."""
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    return {read_number(luma): luma for luma in shown}
