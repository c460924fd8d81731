"""A bundle -> a model of a Triton repository: its configuration, its ONNX graph, and the model that pads before it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.errors import ExportError

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 64
input [
  {{ name: "features" data_type: TYPE_FP32 dims: [ -1, {feature_dim} ] allow_ragged_batch: true }},
  {{ name: "lengths" data_type: TYPE_INT64 dims: [ 1 ] optional: true }}
]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ -1 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}
"""


def write_triton(bundle: bundles.Bundle, repository: Path, name: str) -> Path:
    """Write the model ``name`` into a Triton model repository, whole or not at all.

    Its requests are those of ``runtime.serve``, but for ``lengths``, which Triton wants as [B, 1]. Triton places it on
    every GPU it finds, else on the CPU.

    Raises
    ------
    ExportError
        the bundle gives proposals, the repository has a model of that name, or the disk refuses
    """
    if bundle.manifest["model"].get("output", "scores") != "scores":
        raise ExportError(
            f"{bundle.path}: its graph gives proposals, which need vsum to become scores; serve it with vsum"
        )
    target = repository / name
    if target.exists():
        raise ExportError(f"{target}: exists; remove it or choose another directory")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vsum-", dir=repository) as folder:
            made = Path(folder) / name
            (made / "1").mkdir(parents=True)
            (made / "config.pbtxt").write_text(_CONFIG.format(name=name, feature_dim=bundle.feature_dim))
            shutil.copyfile(bundle.graph, made / "1" / "scorer.onnx")
            shutil.copyfile(Path(__file__).with_name("triton_front.py"), made / "1" / "model.py")
            made.rename(target)
    except OSError as error:
        raise ExportError(f"{target}: could not be written: {error.strerror}") from error
    return target
