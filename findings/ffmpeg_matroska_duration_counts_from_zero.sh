#!/usr/bin/env bash
# FFmpeg: the duration of a Matroska file that starts late is the time of its end, not how long it lasts.
# Expected: the same 4 s for the same pictures in every container, as MP4 and MPEG-TS say.
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
stated = {}
for name in ("clip.mp4", "clip.ts", "clip.mkv"):
    with av.open(name, "w") as clip:
        stream = clip.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(100):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = 500 + number, Fraction(1, 25)  # from 20 s on
            clip.mux(stream.encode(picture))
        clip.mux(stream.encode())
    with av.open(name) as clip:
        stated[name] = clip.duration / av.time_base
        print(f"{name}: starts at {clip.start_time / av.time_base:.2f} s, duration {stated[name]:.2f} s")
right = abs(stated["clip.mp4"] - 4) < 0.1 and abs(stated["clip.ts"] - 4) < 0.1
raise SystemExit(0 if right and abs(stated["clip.mkv"] - 24) < 0.1 else 1)
PY
