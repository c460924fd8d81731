#!/usr/bin/env bash
# FFmpeg: MP4 written with a fragment for every frame loses a third of its sound when FFmpeg reads it back.
# Expected: as many packets of sound are decoded as from the same streams in one fragment for every group of pictures.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==17.0.1" "numpy==2.3.5"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from fractions import Fraction

import av
import numpy as np

print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])


def write(path, flags):
    with av.open(path, "w", options={"movflags": flags}) as film:
        video, audio = film.add_stream("libx264", rate=30), film.add_stream("aac", rate=48000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        video.options = {"bf": "0"}
        start = 0
        for number in range(90):
            picture = np.full((64, 64, 3), number, np.uint8)
            film.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            while start < 1600 * (number + 1):
                tone = np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / 48000).astype(np.float32)
                sound = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
                sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
                film.mux(audio.encode(sound))
                start += 1024
        film.mux(video.encode())
        film.mux(audio.encode())


decoded = {}
for flags in ("frag_keyframe+empty_moov", "frag_every_frame+empty_moov"):
    write("film.mp4", flags)
    with av.open("film.mp4") as film:
        packets = [packet for packet in film.demux(audio=0) if packet.size]
    with av.open("film.mp4") as film:
        decoded[flags] = sum(1 for _ in film.decode(audio=0))
    twice = sum(one.pts == other.pts for one, other in zip(packets, packets[1:]))
    discarded = sum(packet.is_discard for packet in packets)
    print(f"{flags}: {len(packets)} packets, {twice} at the time of the one before, {discarded} to be discarded, "
          f"{decoded[flags]} decoded")
whole, parts = decoded.values()
raise SystemExit(0 if 0.5 * whole < parts < 0.8 * whole else 1)
PY
