"""The wheel holds what users run and nothing else, and no name of another distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vsum_runtime import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "vsum_runtime")
ROOMS = ("kernels", "runtime", "training", "export")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PARTS, *ROOMS):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(REPOSITORY / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_it_holds_code_licence_and_data_and_no_tests(wheel: Path) -> None:
    assert wheel.name == f"vsum_runtime-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    information = f"vsum_runtime-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"vsum_runtime", "runtime", information}
    for room in ROOMS:
        sources = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / room).rglob("*.py")}
        sources = {name for name in sources if "/tests/" not in name and "/test_" not in name}
        assert sources <= {name.removeprefix("vsum_runtime/") for name in names}, "list the folder in setup.py"
    assert not [name for name in names if "test_" in name or "tests/" in name or "benchmark" in name]
    assert {f"{information}/licenses/LICENSE", f"{information}/licenses/NOTICE"} <= set(names)
    assert "vsum_runtime/py.typed" in names
    assert any(name.startswith("vsum_runtime/runtime/default_model/") for name in names)
    assert wheel.stat().st_size < 20e6


def test_it_lives_beside_other_packages_and_scripts_of_those_names(wheel: Path, tmp_path: Path) -> None:
    """Whichever of the two is unpacked first: no file is in both, and a `runtime.py` of the user's is his own."""
    others = {"kernels/__init__.py": "whose = 'another'", "kernels/layer.py": "whose = 'another'"}
    assert not set(others) & set(zipfile.ZipFile(wheel).namelist())
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for name, text in others.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    away = tmp_path / "away"
    away.mkdir()
    (away / "runtime.py").write_text("whose = 'mine'")
    code = (
        "import runtime, kernels, kernels.layer, vsum_runtime\n"
        "from vsum_runtime.runtime import Summarizer\n"
        "from vsum_runtime.runtime.cli import summarize\n"
        "from vsum_runtime.kernels import kts\n"
        "print(runtime.whose, kernels.whose, kernels.layer.whose, vsum_runtime.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=away, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["mine", "another", "another", str(site / "vsum_runtime/__init__.py")]
