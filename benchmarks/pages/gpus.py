"""Rows measured on GPUs, a section for each card; and the record of the parts of a model that stay in float32."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure.rows import ROOT
from vsum_runtime.export.half_precision import ISLANDS
from vsum_runtime.runtime.errors import InputError

RESULTS = ROOT / "benchmarks" / "gpu" / "results"
NOT_YET = "Not measured yet."
BASELINE = "torch eager fp32"
LIMIT = 1e-3


def measured(folder: Path = RESULTS) -> str:
    """One section per card; all rows, the losing ones too.

    Raises
    ------
    InputError   a row that no GPU made
    """
    files = sorted(folder.glob("*.json"))
    parts = [section(json.loads(path.read_text(encoding="utf-8"))) for path in files]
    return "\n\n".join(parts) if parts else NOT_YET


def section(results: dict[str, Any]) -> str:
    about, rows = results["about"], results["rows"]
    if foreign := [row for row in rows if row["device"] != "cuda"]:
        raise InputError(f"expected rows measured on a GPU, got {len(foreign)} of device {foreign[0]['device']!r}")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version != "absent")
    ceilings, commits = about["ceilings"], sorted({str(row["commit"]) for row in rows})
    measured = [row for row in rows if row["status"] == "ok"]
    lines = [
        f"### {about['card']}",
        "",
        f"{about.get('date')}, driver {about['driver']}; {versions}; commit {', '.join(commits)}. This card copies "
        f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s and multiplies matrices at {ceilings['fp32'] / 1e12:.0f} "
        f"(fp32), {ceilings['tf32'] / 1e12:.0f} (TF32) and {ceilings['fp16'] / 1e12:.0f} (fp16) TFLOP/s, measured. "
        f"TensorRT-RTX: {_rtx(about['tensorrt_rtx'])}.",
        "",
        f"*x* is how many times as fast as {BASELINE}; *of floor* the share of the least time the card needs; a "
        f"difference above {LIMIT:.0e} or a changed summary is in bold.",
        "",
        "| model | videos x steps | by | request p50 / p99 ms | x | videos/s | resident p50 ms | of floor | memory MB "
        "| scores off by | tau | same summaries |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    baseline = {_case(row): row["request_p50_s"] for row in measured if row["contestant"] == BASELINE}
    for row in sorted(measured, key=lambda row: (row["model"], _tokens(row), row["shape"], row["request_p50_s"])):
        lines.append(_line(row, baseline.get(_case(row))))
    missing = Counter((row["contestant"], row["status"], row["reason"]) for row in rows if row["status"] != "ok")
    if missing:
        lines += ["", "Not measured:", ""]
        lines += [f"- {who}, {count} rows, {how}: {why}" for (who, how, why), count in sorted(missing.items())]
    return "\n".join([*lines, "", f"Made by `{results['command']}`."])


def _line(row: dict[str, Any], baseline: float | None) -> str:
    off = row["max_abs_difference"]
    same = f"{row['same_summaries']}/{row['videos_checked']}"
    cells = [
        row["model"],
        row["shape"],
        f"**{row['contestant']}**" if row["ours"] else row["contestant"],
        f"{_ms(row['request_p50_s'])} / {_ms(row['request_p99_s'])}",
        "" if baseline is None else f"{baseline / row['request_p50_s']:.2f}",
        f"{row['videos_per_s']:.0f}",
        _ms(row.get("resident_p50_s")),
        "" if row.get("of_floor") is None else f"{row['of_floor']:.0%}",
        "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.0f}",
        "**not finite**" if off is None else f"**{off:.0e}**" if off > LIMIT else f"{off:.0e}",
        "" if row["min_tau"] is None else f"{row['min_tau']:.4f}",
        same if row["same_summaries"] == row["videos_checked"] else f"**{same}**",
    ]
    return f"| {' | '.join(cells)} |"


def _case(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["shape"]


def islands() -> str:
    """A line per architecture; what its scores lose with its parts in float32, and would lose without."""
    records = json.loads(ISLANDS.read_text(encoding="utf-8"))
    lines = [
        "| model | weights | in float32 | scores off by | tau | same summaries | all in half: off by | summaries |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, record in records["architectures"].items():
        kept = ", ".join(f"`{island}`" for island in record["islands"]) or "nothing"
        found, bare = record["measured"], record["without_islands"]
        without = " | " if bare is None else bare.get("error") or f"{bare['max_abs_difference']:.1e} | {_same(bare)}"
        lines.append(
            f"| {name} | {record['weights'].partition(',')[0]} | {kept} ({len(record['islands'])} of {record['of']}) "
            f"| {found['max_abs_difference']:.1e} | {found['min_kendall_tau']:.3f} | {_same(found)} | {without} |"
        )
    return "\n".join([*lines, "", f"Made by `{records['command']}`."])


def _same(measured: dict[str, Any]) -> str:
    return f"{measured['same_summaries']} of {measured['videos']}"


def _tokens(row: dict[str, Any]) -> float:
    """Steps of a regular batch; ragged ones go last."""
    first, _, second = row["shape"].partition(" x ")
    return float(first) * float(second) if second else float("inf")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _rtx(answers: dict[str, Any]) -> str:
    if "absent" in answers:
        return f"not asked ({answers['absent']})"
    told = {name: answer for name, answer in answers.items() if isinstance(answer, dict)}
    return f"version {answers['version']}; " + "; ".join(
        f"engine {name}: {', '.join(f'{key} {value}' for key, value in answer.items())}"
        for name, answer in told.items()
    )
