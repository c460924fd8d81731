"""Where the rows of a table come from, and whether they are older than the code that they measured."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from benchmarks.measure.rows import ROOT, Row, Run

Age = Callable[[Sequence[str], Sequence[str]], str]
"""The note about rows of these commits and these paths of code; "" where there is nothing to say."""


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
            return "; ".join(names)
    return "; ".join(dict.fromkeys(" ".join(filter(None, row.key)) for row in some))


def ages(rows: Sequence[Row], code: Sequence[str], age: Age) -> list[str]:
    """A line where rows are older than the code, and one where that is not known."""
    commits = list(dict.fromkeys(row.run.commit for row in rows))
    unknown = "*The commit was not recorded: these rows may be older than the code.*" if None in commits else ""
    return list(filter(None, [age([commit for commit in commits if commit], code), unknown]))


def _line(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if version != "absent")
    load = "" if run.load_before is None else f", load {run.load_before:.1f} before the run"
    commit = "" if run.commit is None else f", commit {run.commit}"
    return f"`{run.command}`: {run.date}{commit}; {run.device}{load}; {versions}."


def age_now(page: str) -> Age:
    """Notes by the history of this checkout; where it cannot tell, those that the page holds."""
    noted = age_in(page)

    def age(commits: Sequence[str], code: Sequence[str]) -> str:
        note = age_by_git(commits, code)
        return noted(commits, code) if note is None else note

    return age


def age_by_git(commits: Sequence[str], code: Sequence[str]) -> str | None:
    """The note by the history of this checkout; None where it cannot tell."""
    if not shutil.which("git"):
        return None
    counts = {}
    for commit in commits:
        command = ["git", "rev-list", "--count", f"{commit.removesuffix('-dirty')}..HEAD", "--", *code]
        counted = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if counted.returncode:
            return None
        counts[commit] = int(counted.stdout)
    since = ", ".join(f"{count} since {commit}" for commit, count in counts.items() if count)
    return f"{_BEGINNING}{datetime.now(UTC).date()}, commits that changed {_paths(code)}: {since}.*" if since else ""


def age_in(page: str) -> Age:
    """The notes that a page holds."""
    notes = [line for line in page.splitlines() if line.startswith(_BEGINNING)]

    def age(commits: Sequence[str], code: Sequence[str]) -> str:
        of_code = (note for note in notes if f" {_paths(code)}: " in note)
        fitting = (note for note in of_code if set(re.findall(r" since ([\w-]+)", note)) <= set(commits))
        return max(fitting, key=len, default="")

    return age


def _paths(code: Sequence[str]) -> str:
    return ", ".join(f"`{path}`" for path in code)


_BEGINNING = "*Older than the code: by "
