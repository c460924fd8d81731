#!/usr/bin/env bash
# OpenTimelineIO writes time codes at 29.97 frames a second that it refuses to read at that rate, and reads a drop-frame
# label that does not exist as another frame.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opentimelineio==0.18.1
"$folder/venv/bin/python" - <<'PYTHON'
import opentimelineio
from opentimelineio.opentime import RationalTime, from_timecode

print("opentimelineio", opentimelineio.__version__)
label = RationalTime(107892, 29.97).to_timecode()
print(f"written at 29.97: {label}")
assert label == "01:00:00;00"
try:
    again = from_timecode(label, 29.97)
    raise SystemExit(f"read again at 29.97: {again}; this has changed")
except ValueError as error:
    print(f"read again at 29.97: expected 107892 frames, seen {type(error).__name__}: {error}")
exact = from_timecode(label, 30000 / 1001)
print(f"read at 30000/1001: {exact.value:.0f} frames")
assert exact.value == 107892

# Of a minute that is no multiple of ten, frames 0 to 3 have no label at 59.94.
rate = 60000 / 1001
frame = from_timecode("00:01:00;02", rate)
back = frame.to_timecode(rate, True)
print(f'"00:01:00;02" at 60000/1001: expected an error, seen frame {frame.value:.0f}, which is {back}')
assert back == "00:00:59;58", "this has changed"
PYTHON
