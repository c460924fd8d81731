#!/usr/bin/env bash
# pyperf 2.11.0: the memory of a command cannot read below that of the Python process that starts it.
#
# Expected: `pyperf command --track-memory` tells a command that takes 1 MB from one that takes 6 MB.
# Seen: both have the same 12 MB. It reads ru_maxrss of its children, and Linux folds the peak of the memory that exec
# replaces, which is that of pyperf's own worker, into the peak of the new program. VmHWM of /proc/PID/status starts anew.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check pyperf==2.11.0 psutil==7.2.2
"$folder/env/bin/python" - <<'PYTHON'
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "true": ["/bin/true"],
    "5 MB": ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=5M", "count=1", "status=none"],
}
SEEN = "while read -r name value unit; do [ $name = VmHWM: ] && echo $value; done < /proc/self/status"


def pyperf_bytes(command):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        options = ["--track-memory", "--quiet", "--processes", "1", "--values", "1", "--loops", "1", "--warmups", "0"]
        subprocess.run([sys.executable, "-m", "pyperf", "command", *options, "-o", out, "--", *command], check=True,
                       stdout=subprocess.DEVNULL)
        return max(max(run["values"]) for run in json.loads(out.read_text())["benchmarks"][0]["runs"] if "values" in run)


peaks = {name: pyperf_bytes(command) for name, command in COMMANDS.items()}
kernel = 1024 * int(subprocess.run(["/bin/sh", "-c", SEEN], capture_output=True, text=True).stdout)
print("pyperf 2.11.0")
for name, peak in peaks.items():
    print(f"seen by pyperf, {name}: {peak / 1e6:.1f} MB")
print(f"seen by the kernel in a process that was started alike (VmHWM of a shell): {kernel / 1e6:.1f} MB")
print("expected: true below 3 MB, and the two commands apart")
sys.exit(0 if min(peaks.values()) > 8e6 and kernel < 4e6 else 1)
PYTHON
