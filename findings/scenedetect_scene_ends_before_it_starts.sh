#!/usr/bin/env bash
# PySceneDetect places cuts in a video of variable frame rate by their time stamps, but ends the last scene at the number
# of frames divided by a constant rate: 3 s before it starts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  scenedetect==0.7.2 opencv-python-headless==5.0.0.93 av==16.0.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
from fractions import Fraction

import av
import numpy as np
import scenedetect

# 10 s at 5 frames a second, then 10 s at 30; another picture from 5 s and from 15 s on.
times_ms = [200 * i for i in range(50)] + [10_000 + round(i * 1000 / 30) for i in range(300)]
small = np.random.default_rng(0).integers(0, 255, (3, 12, 16, 3), dtype=np.uint8)
pictures = small.repeat(20, axis=1).repeat(20, axis=2)
with av.open("variable.mkv", "w") as film:
    stream = film.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
    stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    for time_ms in times_ms:
        frame = av.VideoFrame.from_ndarray(pictures[(time_ms >= 5000) + (time_ms >= 15_000)], format="rgb24")
        frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
        film.mux(stream.encode(frame))
    film.mux(stream.encode(None))

manager = scenedetect.SceneManager()
manager.add_detector(scenedetect.ContentDetector())
manager.detect_scenes(scenedetect.open_video("variable.mkv", backend="opencv"))
scenes = [(round(start.seconds, 2), round(end.seconds, 2)) for start, end in manager.get_scene_list()]
print("scenedetect", scenedetect.__version__, "with OpenCV")
print(f"expected (0, 5), (5, 15), (15, 20); seen {scenes}")
assert scenes[:2] == [(0, 5), (5, 15)] and scenes[2][0] == 15
assert scenes[2][1] < scenes[2][0], "the last scene now ends after its start"
PYTHON
