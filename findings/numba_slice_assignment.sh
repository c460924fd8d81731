#!/usr/bin/env bash
# numba 0.68.1: assigning one array to a slice of another compiles Python's string functions into the loop's cache.
#
# Expected: `a[:] = b` for two vectors compiles about what the loop over their elements compiles.
# Seen: it also compiles the formatting and joining of unicode strings, for the message of a shape error that is never
# raised: dozens of functions and several times the seconds, on the first call of every fresh installation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import numba
import numpy as np
from numba.core import event


class Compiled(event.Listener):
    def __init__(self):
        self.names = []

    def on_start(self, compilation):
        self.names.append(compilation.data["dispatcher"].py_func.__name__)

    def on_end(self, compilation):
        pass


def by_slice(target, source):
    target[:] = source


def by_loop(target, source):
    for at in range(len(target)):
        target[at] = source[at]


counts = {}
for function in (by_loop, by_slice):
    listener = Compiled()
    with event.install_listener("numba:compile", listener):
        numba.njit(function)(np.zeros(4), np.ones(4))
    counts[function.__name__] = listener.names
    strings = sum(name in ("concat_impl", "_empty_string", "_set_code_point") for name in listener.names)
    print(f"numba {numba.__version__}, {function.__name__}: {len(listener.names)} functions compiled, {strings} of strings")
assert not {"concat_impl", "_empty_string"} & set(counts["by_loop"])
assert {"concat_impl", "_empty_string"} <= set(counts["by_slice"]), "no longer as described"
PYTHON
