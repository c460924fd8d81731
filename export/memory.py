"""How much memory a scorer graph takes, measured: a polynomial of the number of steps.

Attention over all pairs of steps takes memory that grows with the square of the length; an hour of video may not fit.
Without it, or in blocks, memory grows with the length, and the polynomial is a line.
The measured polynomial goes into the bundle, so that the runtime can say so before it starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from vsum_runtime.export.in_blocks import has_squares
from vsum_runtime.runtime.errors import ExportError

LENGTHS = (500, 1000, 2000)
SHORT_LENGTHS = (500, 1400)
LONG_LENGTHS = (2000, 3000, 5000)
"""Steps of the videos that are measured: where memory grows with the square, and else short ones and long ones.

Short videos are run in an arena that grows by doubling, long ones without (`runtime.backends.ort`).
"""

_MARGIN = 1.15  # the allocator's rounding, and what other threads of the process do meanwhile

_CHILD = """
import ctypes, json, sys
from pathlib import Path
import numpy as np
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.backends.ort import KEPT_INPUT_BYTES
from vsum_runtime.runtime.machine import give_back_large_blocks

def status(key):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

give_back_large_blocks()  # as vsum-summarize does: peaks are then the same at every run
graph, feature_dim, lengths = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
session = open_session(graph, "ort-cpu")
first_long = KEPT_INPUT_BYTES // (4 * feature_dim) + 1
rows = np.random.default_rng(0).random((1, max(lengths), feature_dim), dtype=np.float32)
for n_steps in [n for n in (8, first_long) if n <= max(lengths)]:  # long videos are run by a session of their own
    session.run({"features": rows[:, :n_steps].copy(), "lengths": np.array([n_steps])})
# Loading peaks higher than scoring a short video: give back what it left, and forget its peak.
try:
    with open("/proc/self/clear_refs", "w") as peak:
        ctypes.CDLL(None).malloc_trim(0)
        peak.write("5")
except OSError:  # not Linux, or a container that does not let a process do this
    print("null")
    sys.exit()
before, taken = status("VmRSS"), []
for n_steps in lengths:
    outputs = session.run({"features": rows[:, :n_steps], "lengths": np.array([n_steps])})
    taken.append(max(status("VmHWM") - before, sum(output.nbytes for output in outputs)))
print(json.dumps(taken))
"""


def memory_bytes(graph: Path, feature_dim: int, lengths: tuple[int, ...] | None = None) -> list[float] | None:
    """Bytes that scoring one video of T steps takes on a CPU: coefficients of 1, T and T squared, each >= 0.

    Parameters
    ----------
    lengths
        steps of the videos that are measured; default: by whether memory grows with the square

    Returns
    -------
    list of three floats
        None where the operating system does not tell a process its peak

    Raises
    ------
    ExportError
        the graph does not run
    """
    squares = has_squares(onnx.load(graph))
    groups = (lengths,) if lengths else (LENGTHS,) if squares else (SHORT_LENGTHS, LONG_LENGTHS)
    taken: list[float] = []
    for group in groups:  # each in a process of its own, as an arena would stay
        if (found := measured(graph, feature_dim, group)) is None:
            return None
        taken += found
    return envelope(sum(groups, ()), taken, degree=2 if squares else 1)


def measured(graph: Path, feature_dim: int, lengths: tuple[int, ...]) -> list[float] | None:
    """Bytes that scoring one video takes beside its features, for each of these numbers of steps, which increase.

    A process of its own runs the graph. As ``memory_bytes``, but for what it returns; never 0.
    """
    arguments = [sys.executable, "-c", _CHILD, str(graph), str(feature_dim), json.dumps(lengths)]
    environment_path = str(Path(__file__).resolve().parent.parent)
    child = subprocess.run(arguments, capture_output=True, text=True, cwd=environment_path)
    if child.returncode:
        raise ExportError(f"{graph.name}: its memory cannot be measured, it does not run: {child.stderr[-500:]}")
    taken: list[float] | None = json.loads(child.stdout)
    return taken


def envelope(lengths: tuple[int, ...], taken: list[float], *, degree: int = 2) -> list[float]:
    """The parabola or line nearest to measurements, without falling parts, lifted above all of them, and a margin.

    >>> [round(c) for c in envelope((1, 2, 3), [12.0, 24.0, 40.0])]
    [5, 7, 2]
    """
    fitted = np.polynomial.Polynomial.fit(lengths, taken, degree).convert().coef
    coefficients = np.maximum(np.pad(fitted, (0, 3 - len(fitted))), 0.0)
    at = np.polynomial.polynomial.polyval(np.asarray(lengths, dtype=float), coefficients)
    coefficients[0] += max(0.0, float(np.max(np.asarray(taken) - at)))
    return [float(value) for value in coefficients * _MARGIN]
