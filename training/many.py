"""Many runs of one recipe, each split, seed and swept value a process of its own, and a table of them.

Each run is a ``vsum-train`` command that can be repeated alone; runs that are finished are not repeated.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.checkpoint import read_metadata
from vsum_runtime.training.procedures import ac_sum_gan, ca_sum, check_swept, find_recipe
from vsum_runtime.training.runs import Run

Logs = Mapping[float, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Sweep:
    """A setting that the authors train with several values, and how they choose one without labels."""

    setting: str
    values: tuple[float, ...]
    choose: Callable[[Logs], tuple[float, int]]
    """Value -> objectives per epoch in, value and epoch (from 1) out."""


def _choose_sigma(logs: Logs) -> tuple[float, int]:
    sigma = ca_sum.published_sigma(logs)
    return sigma, ca_sum.published_choice(logs[sigma])


SWEEPS: dict[str, Sweep] = {
    "ca_sum": Sweep("sigma", ca_sum.SIGMAS, _choose_sigma),
    "ac_sum_gan": Sweep("sparsity", tuple(n / 10 for n in range(1, 11)), ac_sum_gan.best_run),
}
"""Recipe -> what is swept."""


def find_sweep(name: str) -> Sweep:
    check_swept(name)
    return SWEEPS[name]


def train_side_by_side(argv: Sequence[str], runs: Sequence[Run], *, jobs: int, threads: int) -> None:
    """Run ``vsum-train`` for each of ``runs``, ``jobs`` at a time; their messages go to stderr as they come.

    An interrupt is passed on to the processes, and this one waits for them.

    Raises
    ------
    VsumError
        some of the runs failed; all others were finished first
    """
    read_end, write_end = os.pipe()
    copier = threading.Thread(target=_copy, args=(read_end,), daemon=True)
    copier.start()
    command = [
        sys.executable,
        "-m",
        "vsum_runtime.training.cli",
        *argv,
        "--jobs",
        "1",
        "--threads",
        str(threads),
        "--no-table",
    ]
    waiting, failed = list(runs), []
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run.title] = subprocess.Popen(
                    [*command, *_arguments(run)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=write_end,
                    start_new_session=True,  # so that an interrupt from the keyboard comes here alone
                )
            for title, process in list(running.items()):
                if process.poll() is not None:
                    del running[title]
                    failed += [f"{title} (code {process.returncode})"] if process.returncode else []
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(write_end)
        copier.join(timeout=10)
    if failed:
        raise VsumError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; their messages are above")


def _arguments(run: Run) -> list[str]:
    """What narrows a command for many runs down to one."""
    arguments = ["--split", "whole" if run.split is None else str(run.split)]
    arguments += [] if run.seed is None else ["--seeds", str(run.seed)]
    return arguments + ([] if run.swept is None else ["--sweep", f"{run.swept[1]:g}"])


def _copy(read_end: int) -> None:
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stderr.write(line)
            sys.stderr.flush()


def choose_swept(name: str, runs: Sequence[Run], recipe: Path) -> dict[Run, Run]:
    """Choose among the values of a sweep, for each split and seed: run without the swept setting -> the chosen run.

    The chosen weights become the best of the run without the setting. Runs whose epochs were chosen by
    validation are compared by it, others by the authors' rule; none of the two looks at test videos.
    """
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        groups.setdefault(Run(run.split, run.seed), []).append(run)
    chosen = {}
    for plain, members in groups.items():
        best = {run: read_metadata(run.folder(recipe).best) for run in members}
        rule = next(iter(best.values()))["selection"]["rule"]
        if rule == "validation":
            run = max(members, key=lambda run: best[run]["selection"]["value"] or -1.0)
            epoch = best[run]["epoch"]
        elif rule == find_recipe(name).rules[0]:
            by_value = {run.swept[1]: run for run in members if run.swept is not None}
            logs = {
                value: [line["objectives"] for line in run.folder(recipe).read_log()] for value, run in by_value.items()
            }
            value, epoch = SWEEPS[name].choose(logs)
            run = by_value[value]
        else:
            raise InputError(f"--sweep: the rule {rule} cannot choose among values; use {find_recipe(name).rules[0]}")
        plain.folder(recipe).make_best(run.folder(recipe).epoch(epoch))
        chosen[plain] = run
    return chosen


def table(runs: Sequence[Run], recipe: Path) -> str:
    """Markdown: what was chosen in each run and, where test videos were peeked at, the two test columns."""
    rows, peeked = [], False
    for run in runs:
        folder = run.folder(recipe)
        metadata = read_metadata(folder.best)
        selection, epoch = metadata["selection"], metadata["epoch"]
        row = [run.title, f"{epoch} of {metadata['config']['epochs']}", selection["rule"], _number(selection["value"])]
        lines = {line["epoch"]: line for line in folder.read_peek()}
        if epoch in lines:
            peeked = True
            at_best = max(lines.values(), key=lambda line: -2.0 if line["tau"] is None else line["tau"])
            row += [_agreement(lines[epoch]), f"{_agreement(at_best)} (epoch {at_best['epoch']})"]
        rows.append(row)
    head = ["run", "epoch", "chosen by", "value"]
    if peeked:
        head += ["test tau / rho / F at that epoch", "**not a result:** the same, had the epoch been picked on test"]
    rows = [row + ["-"] * (len(head) - len(row)) for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _agreement(line: Mapping[str, Any]) -> str:
    return f"{_number(line['tau'])} / {_number(line['rho'])} / {_number(line['f_mean'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
