"""The rooms and what each may import: kernels <- runtime <- training <- export."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "runtime", "training", "export")
FORBIDDEN = {
    "kernels": {"runtime", "training", "export", "torch", "onnx", "onnxruntime", "av", "logging"},
    "runtime": {"training", "export", "torch", "onnx", "tensorflow", "cv2"},
    "training": {"export", "onnx", "tensorrt"},
    "export": set(),
}
ALLOWED_OF_TRAINING = {"training.models", "training.backbones", "training.checkpoint", "training.runs"}


def _imports(file: Path) -> set[str]:
    """What a file imports; our own modules without the name of the distribution in front."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("vsum_runtime.") for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        found = {name.split(".")[0] for name in _imports(file)} & FORBIDDEN[room]
        assert not found, f"{file.relative_to(ROOT)} imports {found}"


def test_export_knows_models_but_not_the_training_loop() -> None:
    for file in sorted((ROOT / "export").rglob("*.py")):
        for name in _imports(file):
            if name.split(".")[0] == "training":
                assert any(name.startswith(allowed) for allowed in ALLOWED_OF_TRAINING), f"{file.name} imports {name}"


def test_one_file_each_imports_a_runtime_library() -> None:
    homes: dict[str, set[str]] = {}
    for file in sorted((ROOT / "runtime").rglob("*.py")):
        for name in _imports(file):
            if name.split(".")[0] in {"onnxruntime", "tensorrt", "matplotlib"}:
                homes.setdefault(name.split(".")[0], set()).add(file.name)
    assert all(len(files) == 1 for files in homes.values()), homes


def test_import_runtime_is_light() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "av", "matplotlib", "tensorrt", "openvino", "cv2", "numba", "rich")
    code = f"import sys, runtime, runtime.cli.summarize; print(sorted(set(sys.modules) & set({heavy!r})))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_own_modules_are_imported_by_their_full_name(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            short = [name for name in names if name and name.split(".")[0] in ROOMS]
            assert not short, f"{file.relative_to(ROOT)} imports {short}, which another package may be called"


def test_short_name_gives_the_same_modules() -> None:
    code = (
        "import runtime, runtime.errors, runtime.serve.config, vsum_runtime.runtime as full\n"
        "from runtime.errors import VsumError\n"
        "from runtime import Summarizer\n"
        "assert runtime is full and runtime.errors.VsumError is VsumError and Summarizer is full.Summarizer\n"
        "assert full.errors.__spec__.name == 'vsum_runtime.runtime.errors'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
