#!/usr/bin/env bash
# Importing ONNX Runtime on Linux writes a device id and a store of telemetry below the home. The variable that prevents
# it is read at the import, so setting it later, in the program that uses the library, is too late.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset ORT_DISABLE_TELEMETRY XDG_CACHE_HOME
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0
mkdir "$folder/plain" "$folder/late" "$folder/early"
HOME="$folder/plain" "$folder/venv/bin/python" -c "import onnxruntime; print('onnxruntime', onnxruntime.__version__)"
HOME="$folder/late" "$folder/venv/bin/python" -c "import onnxruntime, os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'"
HOME="$folder/early" ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" -c "import onnxruntime"
for home in plain late early; do
  echo "$home: expected no files in the home, seen: $(cd "$folder/$home" && find . -type f | sort | tr '\n' ' ')"
done
test -n "$(find "$folder/plain" -name deviceid)"
test -n "$(find "$folder/late" -name deviceid)"
test -z "$(find "$folder/early" -type f)"
