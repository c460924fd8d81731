"""What the site takes from the code when it is built: the help of every command and the server's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MARKS = {"<!-- help of every command -->": "_help", "<!-- settings of the server -->": "_settings"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark on a page by what it stands for; called by MkDocs for every page."""
    for mark, function in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, globals()[function]())
    return markdown


def _help() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return "\n".join(
        f"### {name}\n\n```text\n{_run(entry_point.partition(':')[0], '--help')}```\n"
        for name, entry_point in sorted(project["scripts"].items())
    )


def _settings() -> str:
    return _run("vsum_runtime.runtime.serve", "--settings")


def _run(module: str, option: str) -> str:
    """The output of a command; a command that fails stops the build."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, option]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
