#!/usr/bin/env bash
# h5py: Group.copy("key", target) of an external link stores the copy under the name of what the link leads to.
# Expected: the copy lies under "key", as for a group or a soft link of that name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "h5py==3.16.0" "numpy==2.3.5"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import h5py

print("h5py", h5py.__version__, "HDF5", h5py.version.hdf5_version)
with h5py.File("store.h5", "w") as store:
    store["inner/features"] = [1.0, 2.0]
with h5py.File("index.h5", "w") as index:
    index["video_7"] = h5py.ExternalLink("store.h5", "/inner")
    index["video_8/features"] = [3.0]
    index["video_9"] = h5py.SoftLink("/video_8")
with h5py.File("index.h5") as index, h5py.File("copy.h5", "w") as copy:
    for key in index:
        index.copy(key, copy)
    seen = sorted(copy)
print("expected:", ["video_7", "video_8", "video_9"])
print("seen:    ", seen)
raise SystemExit(0 if seen == ["inner", "video_8", "video_9"] else 1)
PY
