"""The pages of docs/: what they quote is in the code, and they answer what people ask first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vsum_runtime.runtime.releases import DISTRIBUTION

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
QUOTED = [
    line.split("|")[1].strip().strip("`")
    for line in (DOCS / "troubleshooting.md").read_text().splitlines()
    if line.startswith("| `") and not line.endswith("| cure |")
]


@pytest.fixture(scope="module")
def code() -> str:
    """All our code, its adjacent string literals joined and our own name filled in."""
    files = (path for room in ("runtime", "training", "export") for path in (REPOSITORY / room).rglob("*.py"))
    text = "\n".join(path.read_text() for path in files)
    return re.sub(r"\"\s*f?\"", "", text).replace("{DISTRIBUTION}", DISTRIBUTION)


def test_there_are_messages() -> None:
    assert len(QUOTED) > 25


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_that_is_explained_exists(message: str, code: str) -> None:
    fixed = message.removesuffix("CUDAExecutionProvider")  # which the code fills in
    assert fixed in code, f"docs/troubleshooting.md explains {message!r}, which nothing says any more"


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("guides/summarize.md", "--budget 90s"),
        ("troubleshooting.md", "vsum-backends"),
        ("training.md", "vsum-train --model pgl_sum --dataset mine_prepared.h5"),
    ],
)
def test_the_first_page_links_to_the_answer(page: str, answer: str) -> None:
    assert re.search(rf"\]\({re.escape(page)}#", (DOCS / "index.md").read_text())
    assert answer in (DOCS / page).read_text()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="`make docs` installs what the site is built with")
    if not (REPOSITORY / "build/typed").exists():
        pytest.skip("`make docs` lays out what the API pages read")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Keep the important shots of a video" in (tmp_path / "commands.html").read_text()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *map(str, sorted(DOCS.rglob("*.md")))])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    named = re.findall(r"`((?:runtime|kernels|training|export|benchmarks|examples|tests|docs|locks)/[\w./-]+)`", text)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
