"""How well each model agrees with people: the reports of ``vsum-evaluate --json`` as tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from benchmarks.measure.rows import RESULTS, read
from benchmarks.pages.tables import amount
from benchmarks.scoring import options_key
from vsum_runtime.training.report import bracket, read_report, spread

TVSUM = ("accuracy_tvsum_partition.json", "accuracy_tvsum_certh.json")
SUMME = "accuracy_summe.json"


@cache
def _report(name: str) -> dict[str, Any]:
    return read_report(RESULTS / name)


def _heading(report: Mapping[str, Any]) -> str:
    splits, dataset = report["splits"], report["dataset"]
    return (
        f"Protocol `{report['protocol']}`, F rule `{report['f_rule']}`. Data `{dataset['name']}.h5` (sha256 "
        f"`{dataset['sha256'][:12]}`), splits `{splits['name']}` (sha256 `{splits['sha256'][:12]}`), "
        f"{len(splits['numbers'])} of them."
    )


def tvsum(name: str) -> str:
    report = _report(name)
    times = {(row.what, row.size): row for row in read(RESULTS / "scoring.json")}
    lines = [
        _heading(report),
        "",
        "| scores of | tau | rho | above linear (tau) | F mean % | F max % | seeds: range of tau "
        "| picked on test: tau / rho | parameters | time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(report["rows"], key=lambda row: -2.0 if row["tau"] is None else row["tau"], reverse=True):
        about = row["about"]
        picked = about.get("picked_on_test")
        timed = times.get((about["model"], options_key(about))) if about else None
        cells = [
            f"**{row['name']}**" if about else row["name"],
            _rank(row, "tau"),
            _rank(row, "rho"),
            _above_linear(row),
            _share(row, "f_mean"),
            _share(row, "f_max"),
            spread(row, "tau") if about else "",
            "" if picked is None else f"{picked['tau']:.3f} / {picked['rho']:.3f}",
            f"{about['parameters']:,}" if about else "",
            "" if timed is None or timed.p50 is None else amount(timed.p50, timed.unit),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    constant = "; ".join(f"{row['name']}: {row['left_out']}" for row in report["rows"] if row["left_out"]) or "none"
    seen = [row["name"] for row in report["rows"] if row["seen_in_training"] != 0]
    lines += ["", f"Pairs of scores and annotator that have no rank correlation, as one side is constant: {constant}."]
    if seen:
        lines += [f"Not known to be free of test videos: {', '.join(seen)}."]
    return "\n".join(lines)


def default_model() -> str:
    """The default model beside what it is compared with."""
    shown = ("leave-one-out ceiling", "nonlocal_ridge", "linear, smoothed", "one human", "random (100 draws)")
    rows = {row["name"]: row for row in _report(TVSUM[0])["rows"]}
    lines = [
        "| scores of | tau | rho | above linear (tau) | F mean % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in (rows[name] for name in shown):
        cells = [row["name"], _rank(row, "tau"), _rank(row, "rho"), _above_linear(row), _share(row, "f_mean")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summe() -> str:
    report = _report(SUMME)
    lines = [
        _heading(report),
        "",
        "| scores of | tau | rho | F max % | F mean % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        cells = [row["name"], _rank(row, "tau"), _rank(row, "rho"), _share(row, "f_max"), _share(row, "f_mean")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def published() -> str:
    lines = [
        "| model | TVSum tau / rho | TVSum F mean % | SumMe F max % | splits; how the epoch was picked | source |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))["rows"]:
        ranks = "-" if row["tau"] is None else f"{row['tau']:.3f} / {row['rho']:.3f}"
        shares = ["-" if row[name] is None else f"{row[name]}" for name in ("tvsum_f", "summe_f")]
        lines.append(f"| {' | '.join([row['model'], ranks, *shares, row['selection'], row['source']])} |")
    return "\n".join(lines)


def commands() -> str:
    """The commands that made the reports, and what they ran on."""
    lines = ["```"]
    for name in TVSUM:
        lines += [row["about"]["command"] for row in _report(name)["rows"] if row["about"]]
    for name in (*TVSUM, SUMME):
        report = _report(name)
        runs = "--runs runs " if any(row["about"] for row in report["rows"]) else ""
        files = f"--dataset {report['dataset']['name']}.h5 --splits {report['splits']['name']}"
        lines.append(f"vsum-evaluate {runs}{files} --json benchmarks/results/{name}")
    versions = sorted({_versions(_report(name)["versions"]) for name in (*TVSUM, SUMME)})
    return "\n".join([*lines, "```", "", f"Evaluated with {'; '.join(versions)}."])


def readme() -> str:
    """The sentence about the default model."""
    report = _report(TVSUM[0])
    rows = {row["name"]: row for row in report["rows"]}
    tau, rho = ({name: f"{row[measure] or 0:.3f}" for name, row in rows.items()} for measure in ("tau", "rho"))
    ours, human, chance, ceiling = "nonlocal_ridge", "one human", "random (100 draws)", "leave-one-out ceiling"
    n_splits = len(report["splits"]["numbers"])
    text = (
        f"On TVSum (50 videos, {n_splits}-fold partition, EfficientNet-Lite0 features) the default model reaches a "
        f"Kendall's tau of {tau[ours]} and a Spearman's rho of {rho[ours]}. One human annotator reaches {tau[human]} "
        f"and {rho[human]} against the others, the mean of all other annotators {tau[ceiling]} and {rho[ceiling]}, "
        f"random scores {tau[chance]}."
    )
    return textwrap.fill(text, 120)


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version != "absent")


def _above_linear(row: Mapping[str, Any]) -> str:
    apart = row["to_linear"].get("tau", {"difference": None})
    return "" if apart["difference"] is None else f"{apart['difference']:+.3f}{bracket(apart['interval'], '+.3f')}"


def _rank(row: Mapping[str, Any], measure: str) -> str:
    return "-" if row[measure] is None else f"{row[measure]:.3f}{bracket(row['intervals'][measure])}"


def _share(row: Mapping[str, Any], measure: str) -> str:
    return "-" if row[measure] is None else f"{100 * row[measure]:.1f}"
