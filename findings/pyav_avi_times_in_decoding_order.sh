#!/usr/bin/env bash
# PyAV: packets of H.264 with B-frames in AVI have presentation times that rise in the order of decoding.
# Expected: none, since AVI stores decoding times alone, as FFmpeg 5.1 gives them; or those at which pictures are shown.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==17.0.1" "numpy==2.3.5"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import av
import numpy as np

print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])
with av.open("clip.avi", "w") as clip:
    stream = clip.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    stream.options = {"bf": "2", "b_strategy": "0", "g": "30"}
    for number in range(12):
        clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")))
    clip.mux(stream.encode())
with av.open("clip.avi") as clip:
    packets = [packet.pts for packet in clip.demux(video=0) if packet.size]
with av.open("clip.avi") as clip:
    frames = [frame.pts for frame in clip.decode(video=0)]
print("expected: frames in the order of their times, the first at 0")
print("seen:     packets", packets)
print("          frames ", frames)
in_decoding_order, shown_out_of_order = packets == sorted(packets), frames != sorted(frames)
raise SystemExit(0 if in_decoding_order and shown_out_of_order and min(frames) > 0 else 1)
PY
