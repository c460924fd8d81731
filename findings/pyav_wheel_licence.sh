#!/usr/bin/env bash
# The FFmpeg in PyAV's wheels calls itself LGPL, and is linked with x264 and x265, which are GPL.
#
# Expected: FFmpeg's configure refuses libx264 and libx265 without --enable-gpl, and with it avcodec_license() answers
#           "GPL version 2 or later" (3 with --enable-version3): the one place a program can ask.
# Seen:     av 18.1.0 is configured with --enable-libx264 --enable-libx265 and without --enable-gpl, answers "LGPL
#           version 3 or later", and lists both libraries among those it needs. Whoever ships the wheel, as in an image,
#           ships GPL libraries, which neither that answer nor the wheel's licence (BSD-3-Clause) tells.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_28_x86_64 --implementation cp --abi cp311 --target "$folder" av==18.1.0
python3 - "$folder" <<'PYTHON'
import ctypes
import sys
from pathlib import Path

libraries = Path(sys.argv[1]) / "av.libs"
[path] = libraries.glob("libavcodec-*")
needed, library = path.read_bytes(), ctypes.CDLL(str(path))
library.avcodec_license.restype = library.avcodec_configuration.restype = ctypes.c_char_p
licence, options = library.avcodec_license().decode(), library.avcodec_configuration().decode().split()
gpl = sorted(file.name for file in libraries.glob("libx26[45]-*") if file.name.encode() in needed)
print("av 18.1.0: avcodec_license():", licence)
print("configured with:", [option for option in options if "x26" in option or "gpl" in option])
print("libraries that libavcodec needs:", gpl)
print("expected: a licence that begins with GPL; seen:", licence)
sys.exit(not (licence.startswith("LGPL") and "--enable-gpl" not in options and len(gpl) == 2))
PYTHON
