"""The README stays true: the places it names exist, and the commands it shows are understood."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import VsumError

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("default-model.md", "training.md", "serving.md", "gpu.md")
DOCUMENTS = [README, *((ROOT / "docs" / name).read_text(encoding="utf-8") for name in PAGES)]
DOORS = {
    "vsum-summarize": "vsum_runtime.runtime.cli.summarize",
    "vsum-train": "vsum_runtime.training.cli",
    "vsum-evaluate": "vsum_runtime.training.evaluate",
    "vsum-export": "vsum_runtime.export.cli",
    "vsum-features": "vsum_runtime.runtime.cli.features",
    "vsum-datasets": "vsum_runtime.training.datasets.cli",
    "vsum-models": "vsum_runtime.training.catalogue",
    "vsum-backends": "vsum_runtime.runtime.cli.backends",
}


def test_places_of_the_table_exist() -> None:
    table = README[README.index("## Where do I") :]
    places = re.findall(r"`([\w./-]+(?:/|\.py|\.md))`", table)
    assert len(places) >= 8
    for place in places:
        homes = (ROOT, ROOT / "runtime" / "backends")
        assert any((home / place).exists() for home in homes), place


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("text", DOCUMENTS)
def test_commands_are_understood(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, every command must get past its arguments and miss the files; a bare one lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(door.Parser, "error", _not_understood)
    commands = re.findall(r"^(vsum-\w+ .*?)(?:  #.*)?$", text, re.MULTILINE)
    for command in commands:
        name, *argv = shlex.split(command)
        assert import_module(DOORS[name]).main(argv) in ((1, 2) if argv else (0,)), command


def _not_understood(parser: door.Parser, message: str) -> NoReturn:
    raise AssertionError(f"{parser.prog}: {message}")


def test_python_of_the_readme_names_what_exists() -> None:
    from vsum_runtime.runtime import Summarizer, Summary

    for name in ("summarize", "score"):
        assert hasattr(Summarizer, name)
    for name in ("segments_s", "write_video"):
        assert hasattr(Summary, name)
    assert issubclass(VsumError, Exception)
