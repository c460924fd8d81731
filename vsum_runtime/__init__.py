"""The one name under which the folders kernels, runtime, training and export are installed.

Code of ours imports by this name alone. A wheel holds the four folders inside this package, so no file of another
distribution (such as Hugging Face's ``kernels``) and no script of a user (such as ``runtime.py``) is taken for ours. In
a checkout the folders lie beside this one and are found there.
"""

import os
import platform
import sys
from pathlib import Path

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036  # from a checkout; pip refuses
    sys.exit(f"vsum: this is Python {platform.python_version()}, expected 3.11 to 3.14; run it with one of those")

# onnxruntime would write a device id below the home and report; it looks at this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_here = Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():
    __path__.append(str(_here.parent))
