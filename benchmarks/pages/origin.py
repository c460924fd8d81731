"""Where the rows of a table come from, and whether they are older than the code that they measured."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from benchmarks.measure.rows import ROOT, Row, Run

Age = Callable[[str, Sequence[str]], str]
"""The note about a commit and paths of code; "" where there is nothing to say."""


def origins(rows: Sequence[Row]) -> list[str]:
    """A line for each run that made some of the rows: command, date, commit, machine, load, versions.

    Where there are several, each begins with what it measured.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(_line(row.run), []).append(row)
    if len(runs) == 1:
        return list(runs)
    return [f"*{_labels(made, rows)}*: {line}" for line, made in runs.items()]


def _labels(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """What tells some of the rows from all others, by the first field that does."""
    others = [row for row in rows if row not in some]
    for field in ("implementation", "what", "size", "metric"):
        names = dict.fromkeys(getattr(row, field) for row in some)
        if not names.keys() & {getattr(row, field) for row in others}:
            return ", ".join(names)
    return ", ".join(dict.fromkeys(" ".join(filter(None, row.key)) for row in some))


def ages(rows: Sequence[Row], code: Sequence[str], age: Age) -> list[str]:
    """A line for each commit that is older than the code, or not known."""
    unknown = "The commit was not recorded: these rows may be older than the code."
    commits = dict.fromkeys(row.run.commit for row in rows)
    notes = (unknown if commit is None else age(commit, code) for commit in commits)
    return [f"*{note}*" for note in notes if note]


def _line(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != "absent")
    load = "" if run.load_before is None else f", load {run.load_before:.1f} before the run"
    commit = "" if run.commit is None else f", commit {run.commit}"
    return f"`{run.command}`: {run.date}{commit}; {run.device}{load}; {versions}."


def age_now(page: str) -> Age:
    """Notes by the history of this checkout; where it cannot tell, those that the page holds."""
    noted = age_in(page)

    def age(commit: str, code: Sequence[str]) -> str:
        note = age_by_git(commit, code)
        return noted(commit, code) if note is None else note

    return age


def age_by_git(commit: str, code: Sequence[str]) -> str | None:
    """The note by the history of this checkout; None where it cannot tell."""
    if not shutil.which("git"):
        return None
    measured = commit.removesuffix("-dirty")
    command = ["git", "rev-list", "--count", f"{measured}..HEAD", "--", *code]
    counted = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if counted.returncode:
        return None
    if (later := int(counted.stdout)) == 0:
        return ""
    paths = ", ".join(f"`{path}`" for path in code)
    commits = f"{later} later commits" if later > 1 else "a later commit"
    today = datetime.now(UTC).date().isoformat()
    return f"{_beginning(commit)}: by {today}, {commits} had changed {paths}."


def age_in(page: str) -> Age:
    """The notes that a page holds."""

    def age(commit: str, code: Sequence[str]) -> str:
        beginning = _beginning(commit)
        noted = (line.strip("*") for line in page.splitlines() if line.startswith(f"*{beginning}:"))
        paths = ", ".join(f"`{path}`" for path in code)
        return next((line for line in noted if line.endswith(f" {paths}.")), "")

    return age


def _beginning(commit: str) -> str:
    return f"Commit {commit} is older than the code it measured"
