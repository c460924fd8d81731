"""The film's clock: seams of recordings, the sound that belongs to the pictures, and sound clocks that drift."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tests.media.clips import Check, check_film, joined, two_programs, write_clip
from vsum_runtime.runtime.cli.summarize import main
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.runtime.media.clock import Clock
from vsum_runtime.runtime.media.film import write_summary
from vsum_runtime.runtime.media.frames import FrameReader, read_frames
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0
from vsum_runtime.runtime.summary import Summary

PICTURE_MS = 34


def sampled(path: Path, *, sparse: bool = False) -> FrameReader:
    with read_frames(path, EFFICIENTNET_LITE0, sparse=sparse) as reader:
        list(reader)
    return reader


def cut(path: Path, ranges: list[list[int]], numbers: list[list[int]] | None = None, **options: Any) -> Check:
    """The exact film of some ranges, compared with the numbers that they hold."""
    times = sampled(path).frame_times_s
    film = write_summary(path, ranges, path.with_name("film.mp4"), frame_times_s=times, **options)
    return check_film(film, numbers or ranges)


def assert_good(check: Check, *, silent: int = 0) -> None:
    assert (check.missing, check.extra, check.steps_back) == ([], 0, 0)
    assert len(check.silent) <= silent
    assert check.worst_av_ms < PICTURE_MS


@pytest.mark.parametrize("again_at_s", [0.0, 10795.0, 40.0], ids=["again", "hours ahead", "ahead"])
def test_joined_recordings_keep_sound_and_pictures_together(tmp_path: Path, again_at_s: float) -> None:
    one = write_clip(tmp_path / "one.ts", 150, sound="mp2", sound_until_s=5.8)
    two = write_clip(
        tmp_path / "two.ts", 150, sound="mp2", first_number=150, sound_ahead_s=5.0, start_s=again_at_s + 0.5
    )
    path = joined([one, two], tmp_path / "joined.ts")
    reader = sampled(path)
    assert reader.n_frames == 300
    assert reader.warnings == []  # the duration that the container makes of such a clock is no promise
    assert reader.frame_times_s[-1] == pytest.approx(10.8, abs=0.2)  # nothing recorded is lost: 0.8 s of sound too
    assert_good(cut(path, [[60, 90], [180, 290]]))


def test_a_clock_of_33_bits_wraps(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "wraps.ts", 120, sound="mp2", start_s=(1 << 33) / 90000 - 3)
    assert sampled(path).frame_times_s[-1] == pytest.approx(4, abs=0.01)
    assert_good(cut(path, [[10, 50], [60, 110]]))


def test_sound_of_the_other_programme_is_not_taken(tmp_path: Path) -> None:
    one = write_clip(tmp_path / "one.ts", 60, sound="mp2", sound_bit_rate=64_000)
    two = write_clip(tmp_path / "two.ts", 60, sound="mp2", sound_bit_rate=256_000, sound_ahead_s=5, first_number=150)
    check = cut(two_programs(one, two, tmp_path / "both.ts"), [[10, 50]])
    assert (len(check.av_ms), check.silent) == (40, [])
    assert check.worst_av_ms < PICTURE_MS  # the number of a picture tells its programme


class Recording:
    """Packets of a stream of pictures (0) and one of sound (1), on clocks of 90 kHz, and where they end up."""

    def __init__(self, *, may_leap: bool = True) -> None:
        streams = [SimpleNamespace(index=index, time_base=Fraction(1, 90000)) for index in (0, 1)]
        self._clock = Clock(streams, may_leap=may_leap)

    def times_s(self, stream: int, *times_s: float) -> list[float]:
        placed = []
        for time_s in times_s:
            ticks = round(time_s * 90000)
            packet = SimpleNamespace(stream_index=stream, pts=ticks, dts=ticks, duration=9000)
            self._clock.mend(packet)
            placed.append(packet.dts / 90000)
        return placed


def test_a_wrap_in_mid_recording_is_continued_to_the_tick() -> None:
    wrap_s = (1 << 33) / 90000
    recording = Recording()
    assert recording.times_s(0, wrap_s - 0.2, wrap_s - 0.1) == pytest.approx([wrap_s - 0.2, wrap_s - 0.1])
    assert recording.times_s(1, wrap_s - 0.25) == pytest.approx([wrap_s - 0.25])
    assert recording.times_s(0, 0.02) == pytest.approx([wrap_s + 0.02])
    assert recording.times_s(1, wrap_s - 0.05, 0.05) == pytest.approx([wrap_s - 0.05, wrap_s + 0.05])


def test_packets_from_before_a_seam_stay_there() -> None:
    recording = Recording()
    recording.times_s(0, *np.arange(50, 55, 0.1))
    recording.times_s(1, *np.arange(50, 54.5, 0.1))
    assert recording.times_s(0, 7.0) == pytest.approx([55])
    assert recording.times_s(1, 54.5, 54.6) == pytest.approx([54.5, 54.6])
    assert recording.times_s(1, 6.9, 7.05) == pytest.approx([54.9, 55.05])
    assert recording.times_s(0, 7.1) == pytest.approx([55.1])


def test_a_pause_of_one_stream_is_no_seam() -> None:
    recording = Recording()
    recording.times_s(0, 1.0, 1.1)
    sound = np.arange(1, 60, 0.1)
    assert recording.times_s(1, *sound) == pytest.approx(sound)
    assert recording.times_s(0, 60.0) == pytest.approx([60])  # one picture for a minute


def test_where_no_seams_may_be_a_leap_is_a_long_picture() -> None:
    assert Recording(may_leap=False).times_s(0, 1.0, 2401.0) == pytest.approx([1.0, 2401.0])


def test_times_before_zero_stay() -> None:
    recording = Recording()
    assert recording.times_s(1, -0.5, -0.4) == pytest.approx([-0.5, -0.4])
    assert recording.times_s(0, -0.3, 0.1) == pytest.approx([-0.3, 0.1])


@pytest.fixture
def three_languages(tmp_path: Path) -> Path:
    """Pictures with three sound tracks, each from 10 s later in the source: English, German (default), French."""
    parts = [write_clip(tmp_path / f"{n}.mkv", 60, sound_ahead_s=10.0 * n) for n in range(3)]
    path = tmp_path / "languages.mkv"
    containers = [av.open(str(part)) for part in parts]
    with av.open(str(path), "w") as film:
        pictures = film.add_stream_from_template(containers[0].streams.video[0])
        sounds = [film.add_stream_from_template(container.streams.audio[0]) for container in containers]
        for sound, language in zip(sounds, ("eng", "deu", "fra"), strict=True):
            sound.metadata["language"] = language
            sound.disposition = int(language == "deu")
        for container, sound in zip(containers, sounds, strict=True):
            for packet in container.demux():
                if packet.size and (packet.stream.type == "audio" or container is containers[0]):
                    packet.stream = pictures if packet.stream.type == "video" else sound
                    film.mux(packet)
            container.close()
    return path


@pytest.mark.parametrize(
    ("audio", "ahead_s"), [(None, [10]), ("1", [0]), ("3", [20]), ("ENG", [0]), ("fra", [20]), ("all", [0, 10, 20])]
)
def test_sound_tracks_by_number_and_language(three_languages: Path, audio: str | None, ahead_s: list[int]) -> None:
    film = three_languages.with_name("film.mp4")
    write_summary(three_languages, [[10, 50]], film, audio=audio)
    with av.open(str(film)) as container:
        languages = [stream.metadata["language"] for stream in container.streams.audio]
    assert languages == [("eng", "deu", "fra")[ahead // 10] for ahead in ahead_s]
    for track, ahead in enumerate(ahead_s):
        check = check_film(film, [[10, 50]], sound=track)
        assert np.median(check.av_ms) == pytest.approx(1000 * ahead, abs=5)


@pytest.mark.parametrize("cut", ["exact", "smart", "copy"])
def test_every_cut_takes_the_tracks_that_are_asked_for(three_languages: Path, cut: str) -> None:
    film = three_languages.with_name("film.mp4")
    shots = np.array([[0, 10], [10, 50], [50, 60]])
    summary = Summary(
        scores=np.ones(1, np.float32),
        picks=np.zeros(1, np.int64),
        n_frames=60,
        shots=shots,
        shot_scores=np.ones(3),
        chosen=np.array([1]),
        budget_frames=60,
        frame_times_s=np.arange(61) / 30,
        source=three_languages,
    )
    summary.write_video(film, cut=cut, audio="all")
    with av.open(str(film)) as container:
        assert [stream.metadata["language"] for stream in container.streams.audio] == ["eng", "deu", "fra"]
    with pytest.raises(InputError, match="spa"):
        summary.write_video(film, cut=cut, audio="spa")


@pytest.mark.parametrize("audio", ["4", "0", "spa", ""])
def test_a_track_that_is_not_there_is_refused(three_languages: Path, audio: str) -> None:
    with pytest.raises(InputError, match=r"there are: 1 \(eng\), 2 \(deu\), 3 \(fra\)"):
        write_summary(three_languages, [[10, 50]], three_languages.with_name("film.mp4"), audio=audio)
    assert not three_languages.with_name("film.mp4").exists()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_stream_that_appears_while_the_file_is_read_costs_no_picture(tmp_path: Path, *, sparse: bool) -> None:
    """The packets of the sound get another number half way, as damage does it."""
    path = write_clip(tmp_path / "late.ts", 60, sound="mp2")
    data = bytearray(path.read_bytes())
    for start in range(len(data) // 2 // 188 * 188, len(data), 188):
        if int.from_bytes(data[start + 1 : start + 3], "big") & 0x1FFF == 0x101:
            data[start + 2] = 0xF0
    path.write_bytes(data)
    assert sampled(path, sparse=sparse).n_frames == 60


def test_the_command_takes_a_track(three_languages: Path, tmp_path: Path) -> None:
    film = tmp_path / "summary.mp4"
    assert main([str(three_languages), "--out", str(film), "--budget", "50%", "--audio", "fra", "--quiet"]) == 0
    with av.open(str(film)) as container:
        assert [stream.metadata["language"] for stream in container.streams.audio] == ["fra"]
    assert main([str(three_languages), "--out", str(tmp_path / "b.mp4"), "--audio", "spa", "--cut", "copy"]) == 2
