"""Writing the summary film: exactly the frames asked for, their sound in its place, and a whole file or none."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import InputError, VideoError, VsumError
from vsum_runtime.runtime.media import film as films
from vsum_runtime.runtime.media.decode import find_video, open_container
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.media.sparse import _Decoding as Decoding
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

RATE = 48000


def noise(rng: np.random.Generator, duration_s: float, channels: int = 1, rate: int = RATE) -> NDArray[np.float32]:
    """Noise below 6 kHz: its place can be told to a part of a sample, and AAC keeps it."""
    spectrum = np.fft.rfft(rng.normal(size=(channels, round(duration_s * rate))))
    spectrum[:, np.fft.rfftfreq(round(duration_s * rate), 1 / rate) > 6000] = 0
    signal_ = np.fft.irfft(spectrum, n=round(duration_s * rate))
    return (0.2 * signal_ / signal_.std()).astype(np.float32)


def lag(heard: NDArray[np.float32], expected: NDArray[np.float32], reach: int = 3000) -> tuple[int, float]:
    """Samples by which `heard` comes late, and the correlation there."""
    n = len(expected)
    padded = np.pad(heard, (reach, reach))
    scores = [
        float(np.dot(padded[reach + shift : reach + shift + n], expected))
        / (np.linalg.norm(padded[reach + shift : reach + shift + n]) * np.linalg.norm(expected) + 1e-9)
        for shift in range(-reach, reach, 1)
    ]
    best = int(np.argmax(scores))
    return best - reach, scores[best]


def kept(ranges: list[list[int]]) -> list[int]:
    return [index for start, end in ranges for index in range(start, end)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
def test_exactly_the_frames_of_the_ranges(media: Any, suffix: str) -> None:
    source = media.film("source.mp4", 120, options={"preset": "medium", "bf": "3", "g": "100"})
    ranges = [[0, 1], [17, 42], [43, 44], [100, 120]]
    out = write_summary(source, np.array(ranges), media.folder / f"out{suffix}")
    pictures, times = media.pictures(out)
    assert media.numbers(pictures) == kept(ranges)
    np.testing.assert_allclose(times, np.arange(len(times)) / 30, atol=1e-3)


def test_ranges_that_touch_are_one(media: Any) -> None:
    source = media.film("source.mp4", 40)
    out = write_summary(source, [[5, 10], [10, 20]], media.folder / "out.mp4")
    assert media.numbers(media.pictures(out)[0]) == list(range(5, 20))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_durations_are_kept(media: Any, rng: np.random.Generator, suffix: str) -> None:
    steps = rng.choice([0.02, 0.05, 0.1, 0.4], size=60)
    starts = np.concatenate([[0], np.cumsum(steps)])
    source = media.film(f"source{suffix}", 60, times_s=starts[:60].tolist())
    ranges = [[3, 11], [20, 21], [30, 50]]
    pictures, times = media.pictures(write_summary(source, ranges, media.folder / "out.mp4"))
    frames = kept(ranges)
    assert media.numbers(pictures) == frames
    np.testing.assert_allclose(times, np.concatenate([[0], np.cumsum(steps[frames])])[:-1], atol=1e-3)


def test_the_last_frame_lasts_as_long_as_in_the_source(media: Any) -> None:
    source = media.film("source.mp4", 3, times_s=[0.0, 0.1, 0.9])
    out = write_summary(source, [[0, 2]], media.folder / "out.mp4")
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(0.9, abs=1e-3)


def test_flashes_and_beeps_stay_together(media: Any) -> None:
    flashes = [10, 33, 58, 95, 131, 160, 199]
    beeps = np.zeros((1, 7 * RATE), dtype=np.float32)
    for frame in flashes:
        first = frame * RATE // 30
        beeps[0, first : first + RATE // 30] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 30) / RATE)
    source = media.film(
        "source.mp4",
        210,
        paint=lambda index: np.full((48, 64, 3), 255 if index in flashes else 0, dtype=np.uint8),
        sounds=[beeps],
        sound_codec="aac",
    )
    ranges = [[5, 21], [28, 40], [50, 100], [125, 170], [190, 210]]
    out = write_summary(source, ranges, media.folder / "out.mp4")
    pictures, times = media.pictures(out)
    bright = pictures.mean(axis=(1, 2, 3)) > 128
    sound, rate = media.sound(out)
    loud = np.abs(sound[0]) > 0.2
    onsets = np.flatnonzero(loud & ~np.array([loud[max(0, i - rate // 60) : i].any() for i in range(len(loud))])) / rate
    assert bright.sum() == len(flashes) == len(onsets)
    np.testing.assert_allclose(onsets, times[bright], atol=0.005)  # a frame lasts 0.033 s


@pytest.mark.parametrize("rate", [30, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_sound_does_not_drift_over_many_cuts(media: Any, rng: np.random.Generator, rate: Fraction | int) -> None:
    n_frames = 240
    sound = noise(rng, n_frames / float(rate) + 1)
    source = media.film("source.mov", n_frames, rate=rate, sounds=[sound])
    ranges = [[start, start + 3] for start in range(1, n_frames - 4, 4)]
    out = write_summary(source, ranges, media.folder / "out.mp4")
    heard, heard_rate = media.sound(out)
    assert heard_rate == RATE
    film_frame = 0
    for start, end in ranges:
        first, last = (round(frame / Fraction(rate) * RATE) + 300 for frame in (start, end))
        at = round(film_frame / Fraction(rate) * RATE) + 300
        late, likeness = lag(heard[0, at : at + last - first - 600], sound[0, first : last - 600], reach=50)
        assert abs(late) <= 1
        assert likeness > 0.8  # noise suffers in AAC; beside its place it is below 0.2
        film_frame += end - start


def test_joins_fade_so_that_they_do_not_click(media: Any) -> None:
    n = 8 * RATE
    sound = (0.5 * np.ones((1, n))).astype(np.float32)  # a constant: every join without a fade would stay at 0.5
    source = media.film("source.mov", 200, sounds=[sound])
    out = write_summary(source, [[30, 60], [90, 150]], media.folder / "out.mkv")
    heard = media.sound(out)[0][0]
    join = RATE  # 30 frames
    assert np.abs(heard[join - 24 : join + 24]).max() < 0.15
    assert np.abs(heard[RATE // 10 : join - RATE // 100] - 0.5).max() < 0.05
    assert np.abs(heard[join + RATE // 100 : join + RATE] - 0.5).max() < 0.05


def test_without_sound_there_is_no_sound_track(media: Any) -> None:
    out = write_summary(media.film("source.mp4", 20), [[5, 15]], media.folder / "out.mp4")
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_sound_that_ends_early_becomes_silence(media: Any, rng: np.random.Generator) -> None:
    source = media.film("source.mov", 90, sounds=[noise(rng, 1.0)])
    heard = media.sound(write_summary(source, [[15, 60]], media.folder / "out.mp4"))[0][0]
    assert len(heard) >= 1.5 * RATE
    assert np.abs(heard[1000 : RATE // 2 - 1000]).mean() > 0.05
    assert np.abs(heard[RATE // 2 + 3000 :]).max() < 1e-3


def test_sound_that_starts_late_stays_late(media: Any, rng: np.random.Generator) -> None:
    sound = noise(rng, 2.0)
    source = media.film("source.mkv", 90, sounds=[sound], sound_start_s=1.0)
    heard = media.sound(write_summary(source, [[15, 60]], media.folder / "out.mp4"))[0][0]
    assert np.abs(heard[: RATE // 2 - 3000]).max() < 1e-3
    late, likeness = lag(heard[RATE // 2 + 1000 : RATE], sound[0, 1000 : RATE // 2], reach=100)
    assert (late, likeness > 0.8) == (0, True)


def test_sound_longer_than_the_video_ends_with_it(media: Any, rng: np.random.Generator) -> None:
    source = media.film("source.mov", 30, sounds=[noise(rng, 5.0)])
    heard = media.sound(write_summary(source, [[0, 30]], media.folder / "out.mp4"))[0][0]
    assert RATE <= len(heard) <= RATE + 1024


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_tracks_the_default_is_taken(media: Any, rng: np.random.Generator, default: int) -> None:
    first, second = noise(rng, 2.0), noise(rng, 2.0)
    source = media.film("source.mkv", 60, sounds=[first, second], default_sound=default)
    out = write_summary(source, [[0, 60]], media.folder / "out.mp4")
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
    heard = media.sound(out)[0][0]
    assert lag(heard[1000:20000], (first, second)[default][0, 1000:20000], reach=50)[1] > 0.8


@pytest.mark.parametrize(
    ("rate", "layout", "channels", "expected_rate", "expected_layout"),
    [
        (44100, "stereo", 2, 44100, "stereo"),
        (8000, "mono", 1, 8000, "mono"),
        (37800, "mono", 1, 48000, "mono"),
        (48000, "5.1", 6, 48000, "5.1"),
        (48000, "3.0", 3, 48000, "stereo"),
        (48000, "5.1(side)", 6, 48000, "5.1"),
    ],
)
def test_rates_and_layouts_that_aac_does_not_know_are_converted(
    media: Any,
    rng: np.random.Generator,
    rate: int,
    layout: str,
    channels: int,
    expected_rate: int,
    expected_layout: str,
) -> None:
    source = media.film(
        "source.mkv", 90, sounds=[noise(rng, 3.0, channels, rate)], sound_rate=rate, sound_layout=layout
    )
    out = write_summary(source, [[10, 30], [40, 80]], media.folder / "out.mp4")
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (expected_rate, expected_layout)
    heard = media.sound(out)[0]
    assert 2 * expected_rate <= heard.shape[1] <= 2 * expected_rate + 2048
    assert np.abs(heard).mean() > 0.05


def test_resampled_sound_keeps_its_place(media: Any) -> None:
    rate = 37800
    time_s = np.arange(3 * rate) / rate
    beeps = (0.5 * np.sin(2 * np.pi * 1000 * time_s) * ((time_s * 2) % 1 < 0.1)).astype(np.float32)[None]
    source = media.film("source.mkv", 90, sounds=[beeps], sound_rate=rate)
    heard, heard_rate = media.sound(write_summary(source, [[10, 90]], media.folder / "out.mp4"))
    loud = np.flatnonzero(np.abs(heard[0]) > 0.2) / heard_rate
    onsets = loud[np.diff(loud, prepend=-1) > 0.1]
    np.testing.assert_allclose(onsets, np.array([0.5, 1.0, 1.5, 2.0, 2.5]) - 10 / 30, atol=0.003)


@pytest.mark.parametrize("drift", [0.002, -0.004])
def test_a_sound_clock_that_drifts_is_followed_within_a_picture(media: Any, drift: float) -> None:
    time_s = np.arange(20 * RATE) / RATE
    beeps = (0.5 * np.sin(2 * np.pi * 1000 * time_s) * (time_s % 1 < 0.1)).astype(np.float32)[None]
    steady, drifting = media.film("steady.mkv", 600, sounds=[beeps]), media.folder / "drifting.mkv"
    with av.open(str(steady)) as source, av.open(str(drifting), "w") as film:
        copies = {stream.index: film.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    packet.pts = packet.dts = round(packet.pts * (1 + drift))
                packet.stream = copies[packet.stream_index]
                film.mux(packet)
    heard, heard_rate = media.sound(write_summary(drifting, [[0, 600]], media.folder / "out.mp4"))
    loud = np.flatnonzero(np.abs(heard[0]) > 0.2) / heard_rate
    onsets = loud[np.diff(loud, prepend=-1) > 0.1]
    np.testing.assert_allclose(onsets, np.arange(20) * (1 + drift), atol=0.02)  # a picture lasts 0.033 s
    tones = (loud[np.diff(loud, append=30) > 0.1] - onsets)[1:]  # the film fades in
    np.testing.assert_allclose(tones, 0.1, atol=0.002)  # no step within a tone


@pytest.mark.parametrize("size", [(67, 51), (65, 48), (64, 49)])
def test_odd_sizes_lose_one_column_or_row(media: Any, size: tuple[int, int]) -> None:
    source = media.film("source.mkv", 20, size=size, codec="ffv1")
    pictures, _ = media.pictures(write_summary(source, [[2, 12]], media.folder / "out.mp4"))
    assert pictures.shape[1:3] == (size[1] // 2 * 2, size[0] // 2 * 2)
    assert media.numbers(pictures) == list(range(2, 12))


@pytest.mark.parametrize("size", [(64, 48), (67, 51)])
def test_rotated_pictures_are_written_upright(media: Any, size: tuple[int, int]) -> None:
    corners = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    corners[:16, :16], corners[:16, -16:], corners[-16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    film = media.film("film.mp4", 4, size=size, pix_fmt="yuv444p", paint=lambda _: corners)
    out = write_summary(media.turned(film, (0, 1, -1, 0)), [[1, 3]], media.folder / "out.mp4")
    pictures, _ = media.pictures(out)
    upright = np.rot90(corners, -1)[: size[0] // 2 * 2, : size[1] // 2 * 2]
    assert pictures.shape == (2, *upright.shape)
    for row in (8, -8):
        for column in (8, -8):
            np.testing.assert_allclose(pictures[0, row, column], upright[row, column], atol=24)
    with read_frames(out, replace(EFFICIENTNET_LITE0, width=upright.shape[1], height=upright.shape[0])) as reader:
        np.testing.assert_allclose(next(iter(reader))[0][8, 8], upright[8, 8], atol=24)  # not turned once more


@pytest.mark.parametrize(("matrix", "shape"), [((1, 0, 0, 1), Fraction(4, 3)), ((0, 1, -1, 0), Fraction(3, 4))])
def test_pixels_that_are_not_square_stay_so(media: Any, matrix: tuple[int, int, int, int], shape: Fraction) -> None:
    source = media.turned(media.film("source.mp4", 10, pixel_shape=Fraction(4, 3)), matrix)
    with av.open(str(write_summary(source, [[2, 8]], media.folder / "out.mp4"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == shape


def test_a_picture_too_small_for_a_film_is_refused(media: Any) -> None:
    source = media.film("source.mov", 3, size=(1, 9), codec="png", pix_fmt="rgb24")
    with pytest.raises(VideoError, match="at least 2x2 pixels, got 1x9"):
        write_summary(source, [[0, 3]], media.folder / "out.mp4")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ten-bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("full-range.mp4", {"pix_fmt": "yuvj420p", "color_range": 2}),
        ("full-chroma.mp4", {"pix_fmt": "yuv444p"}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("grey.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
        ("xvid.avi", {"codec": "mpeg4"}),
        ("raw.h264", {"options": {"preset": "medium", "bf": "3"}}),
    ],
)
def test_colours_and_frames_of_all_kinds_of_video(media: Any, name: str, options: dict[str, Any]) -> None:
    def paint(index: int) -> NDArray[np.uint8]:
        picture = media.numbered(index, (64, 48))
        picture[:20] = (200, 90, 40)
        return picture

    source = media.film(name, 40, paint=paint, **options)
    before = media.pictures(source)[0]
    after = media.pictures(write_summary(source, [[3, 9], [20, 40]], media.folder / "out.mp4"))[0]
    assert media.numbers(after[:, 24:]) == [*range(3, 9), *range(20, 40)]
    np.testing.assert_allclose(after[0, 5:15, 5:59].mean((0, 1)), before[3, 5:15, 5:59].mean((0, 1)), atol=4)


def test_a_size_that_changes_on_the_way_is_scaled_to_the_first(media: Any) -> None:
    path = media.folder / "joined.h264"
    path.write_bytes(media.film("a.h264", 20).read_bytes() + media.film("b.h264", 20, size=(96, 72)).read_bytes())
    pictures, _ = media.pictures(write_summary(path, [[15, 25]], media.folder / "out.mp4"))
    assert pictures.shape == (10, 48, 64, 3)
    assert media.numbers(pictures) == [*range(15, 20), *range(5)]


def test_one_frame(media: Any) -> None:
    out = write_summary(media.film("source.mp4", 1), [[0, 1]], media.folder / "out.mp4")
    pictures, times = media.pictures(out)
    assert media.numbers(pictures) == [0]
    assert times.tolist() == [0.0]


def test_frames_are_counted_as_the_reader_counts_them_in_a_damaged_file(media: Any, rng: np.random.Generator) -> None:
    source = media.damaged(media.film("source.ts", 200), rng)
    with read_frames(source, replace(EFFICIENTNET_LITE0, width=64, height=48, rate_hz=None, stride=1)) as reader:
        numbers = media.numbers(np.concatenate(list(reader)))
    ranges = [[50, 70], [len(numbers) - 30, len(numbers)]]
    pictures, _ = media.pictures(write_summary(source, ranges, media.folder / "out.mp4"))
    assert media.numbers(pictures) == [numbers[i] for i in kept(ranges)]


def test_without_libx264_another_encoder_is_used(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "_H264_ENCODERS", ("an-encoder-nobody-has",))
    source = media.film("source.mp4", 40, times_s=[i / 30 for i in range(40)])
    out = write_summary(source, [[5, 15], [20, 30]], media.folder / "out.mp4")
    pictures, times = media.pictures(out)
    assert media.numbers(pictures) == [*range(5, 15), *range(20, 30)]
    np.testing.assert_allclose(times, np.arange(20) / 30, atol=1e-3)
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_every_range_starts_with_a_key_frame(media: Any) -> None:
    out = write_summary(media.film("source.mp4", 60), [[5, 15], [20, 30]], media.folder / "out.mp4")
    with av.open(str(out)) as container:
        keys = [index for index, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys == [0, 10]


def test_progress_rises_to_one(media: Any) -> None:
    shares: list[float] = []
    write_summary(media.film("source.mp4", 60), [[5, 15], [20, 40]], media.folder / "out.mp4", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    "ranges",
    [[], [[3, 3]], [[5, 2]], [[-1, 4]], [[5, 9], [8, 12]], [[9, 12], [1, 3]], [[0.0, 3.0]], [0, 3], [[0, 1, 2]]],
)
def test_impossible_ranges_are_refused(media: Any, ranges: Any) -> None:
    with pytest.raises(InputError, match="ranges"):
        write_summary(media.film("source.mp4", 20), ranges, media.folder / "out.mp4")


def test_ranges_beyond_the_video_are_refused(media: Any) -> None:
    source = media.film("source.mp4", 20)
    with pytest.raises(VideoError, match="at least 25 frames, decoded 20"):
        write_summary(source, [[5, 25]], media.folder / "out.mp4")
    assert sorted(path.name for path in media.folder.iterdir()) == ["source.mp4"]


def test_ranges_beyond_the_times_are_refused(media: Any) -> None:
    source = media.film("source.mp4", 40)
    with pytest.raises(VideoError, match="expected a video of at least 35 frames"):
        write_summary(source, [[10, 35]], media.folder / "out.mp4", frame_times_s=np.arange(21) / 30)


def test_a_suffix_that_is_no_film_is_refused(media: Any) -> None:
    with pytest.raises(InputError, match=r"\.mp4.*out\.webm"):
        write_summary(media.film("source.mp4", 20), [[0, 5]], media.folder / "out.webm")


def test_a_missing_folder_is_refused(media: Any) -> None:
    with pytest.raises(InputError, match="make it first"):
        write_summary(media.film("source.mp4", 20), [[0, 5]], media.folder / "nowhere" / "out.mp4")


def test_a_full_disk_leaves_the_older_film(media: Any, rng: np.random.Generator) -> None:
    source = media.film(
        "source.mp4", 60, size=(320, 240), paint=lambda _: rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    )
    out = media.folder / "out.mp4"
    out.write_bytes(b"an older film")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(VsumError, match=r"out\.mp4: expected to write"):
            write_summary(source, [[0, 60]], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_bytes() == b"an older film"
    assert sorted(path.name for path in media.folder.iterdir()) == ["out.mp4", "source.mp4"]


def test_an_interruption_leaves_nothing(media: Any) -> None:
    def interrupt(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_summary(media.film("source.mp4", 60), [[0, 60]], media.folder / "out.mp4", progress=interrupt)
    assert sorted(path.name for path in media.folder.iterdir()) == ["source.mp4"]


def test_the_film_may_replace_its_source(media: Any) -> None:
    source: Path = media.film("source.mp4", 30)
    write_summary(source, [[10, 20]], source)
    assert media.numbers(media.pictures(source)[0]) == list(range(10, 20))


def test_a_frame_that_cannot_be_decoded_shifts_nothing(media: Any) -> None:
    """The reader may leave a frame out and count it; the cut, which meets the damage, still takes the right frames."""
    source = media.film("source.mp4", 120, options={"preset": "medium", "bf": "3", "g": "40"})
    with read_frames(source, EFFICIENTNET_LITE0) as reader:
        list(reader)
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        damaged = next(packet for packet in packets[10:] if bytes(packet)[4] & 0x60 == 0)  # no other refers to it
        lost, place, size = round(damaged.pts * damaged.time_base * 30), damaged.pos, damaged.size
    data = bytearray(source.read_bytes())
    data[place : place + size] = bytes(size)
    source.write_bytes(data)
    ranges = [[lost - 3, lost + 4], [90, 100]]
    out = write_summary(source, ranges, media.folder / "out.mp4", frame_times_s=reader.frame_times_s)
    pictures, times = media.pictures(out)
    assert media.numbers(pictures) == [number for number in kept(ranges) if number != lost]
    assert times[-1] == pytest.approx(16 / 30, abs=1e-3)  # the frame before it stays for as long


def test_numbers_by_time_are_numbers_by_count(media: Any, rng: np.random.Generator) -> None:
    starts = np.concatenate([[5.0], 5 + np.cumsum(rng.choice([0.001, 0.02, 0.4], size=59))])
    ranges = [[0, 2], [3, 11], [20, 21], [30, 60]]
    for name in ("source.mp4", "source.mkv", "source.ts"):
        source = media.film(name, 60, times_s=starts.tolist())
        with read_frames(source, EFFICIENTNET_LITE0) as reader:
            list(reader)
        out = write_summary(source, ranges, media.folder / "out.mp4", frame_times_s=reader.frame_times_s)
        assert media.numbers(media.pictures(out)[0]) == kept(ranges)


@pytest.mark.parametrize("name", ["source.mp4", "source.mkv", "source.ts"])
@pytest.mark.parametrize(
    ("codec", "parameters"),
    [
        ("libx264", "b-pyramid=none"),
        ("libx264", "b-pyramid=normal:ref=5:b-adapt=0"),
        ("libx264", "open-gop=1"),
        ("libx264", "slices=4"),
        ("libx264", "repeat-headers=1"),
        ("libx264", "keyint=250"),
        ("libx265", "keyint=30:open-gop=0"),
        ("libx265", "keyint=30:open-gop=0:temporal-layers=2:ref=5"),
        ("libx265", "keyint=250"),
    ],
)
def test_what_the_film_does_not_need_is_not_decoded(media: Any, name: str, codec: str, parameters: str) -> None:
    x264 = {"bf": "3", "g": "30", "x264-params": parameters}
    options = x264 if codec == "libx264" else {"x265-params": f"log-level=none:bframes=3:{parameters}"}
    source = media.film(name, 200, codec=codec, options={"preset": "medium", **options})
    with read_frames(source, EFFICIENTNET_LITE0) as reader:
        list(reader)
    n_decoded = 0
    real = Decoding._receive

    def receive(self: Any, packet: Any) -> None:
        nonlocal n_decoded
        n_decoded += packet.size > 0
        real(self, packet)

    for ranges in ([(0, 1), (31, 40), (100, 101), (130, 151)], [(29, 31), (199, 200)], [(3, 5)]):
        needed, all_kept = [], []
        for function, taken in (
            (films._needed_frames, needed),
            (films._kept_frames, all_kept),
        ):
            with open_container(source) as container, pytest.MonkeyPatch.context() as patch:
                patch.setattr(Decoding, "_receive", receive)
                stream = find_video(container, source)
                for kept_frame in function(container, stream, ranges, reader.frame_times_s, None):
                    taken.append((kept_frame.picture.to_ndarray(), *kept_frame[1:]))
        assert len(needed) == sum(end - start for start, end in ranges)
        for found, expected in zip(needed, all_kept, strict=True):
            np.testing.assert_array_equal(found[0], expected[0])
            assert found[1:] == expected[1:]
    if parameters != "keyint=250":
        assert n_decoded < 400


def test_packets_that_came_at_other_times_before_are_decoded_whole(media: Any) -> None:
    source = media.film("source.mp4", 90, options={"preset": "medium", "bf": "3", "g": "30"})
    with read_frames(source, EFFICIENTNET_LITE0) as reader:
        list(reader)
    times = reader.frame_times_s
    times[40:] -= 0.01  # less than half a frame
    out = write_summary(source, [[35, 50], [70, 80]], media.folder / "out.mp4", frame_times_s=times)
    assert media.numbers(media.pictures(out)[0]) == [*range(35, 50), *range(70, 80)]
