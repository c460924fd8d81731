"""What do all models reach, judged alike?  JSON rows in, ``docs/measured/results.md`` out.

    vsum-evaluate --runs runs --dataset tvsum_prepared.h5 --splits tvsum_partition.json \\
        --json benchmarks/results/accuracy_tvsum_partition.json
    vsum-evaluate --runs runs --dataset tvsum_prepared.h5 --splits tvsum_certh.json \\
        --json benchmarks/results/accuracy_tvsum_certh.json
    vsum-evaluate --dataset summe_labels.h5 --splits summe_partition.json --json benchmarks/results/accuracy_summe.json
    python -m benchmarks.results time --runs runs         # scoring times, into benchmarks/results/scoring.json
    python -m benchmarks.accuracy --bundle ... --out benchmarks/results/bundles.json
    python -m benchmarks.results write                    # docs/measured/results.md from the files above

Numbers are in the files; the page only arranges them. Published numbers are in ``benchmarks/results/published.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import accuracy
from benchmarks.kernels import machine
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training.evaluate import bracket, read_report, spread

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "measured" / "results.md"
TVSUM = ("accuracy_tvsum_partition.json", "accuracy_tvsum_certh.json")
SUMME = "accuracy_summe.json"
N_STEPS = 320

INTRODUCTION = """\
# Results

Every model of this project on the same features, the same splits and the same judge. The page is written by
`python -m benchmarks.results write` from the rows in `benchmarks/results/accuracy_*.json`, which hold every test video;
`vsum-evaluate --json` writes those.

- **No test video is ever used to choose anything.** The column *picked on test* is no result: it is what the same
  runs would have shown, had the epoch been picked by its agreement with the test videos, as many published numbers
  were.
- Kendall's tau-b and Spearman's rho of the scores at the sampled steps, against each of the 20 annotators, averaged
  over annotators, then over the test videos of a split, then over splits, then over seeds.
- F-score at 15 % of the frames: exact knapsack over the mean scores of the shots; *mean* and *max* over annotators.
  Random scores reach most of what any model reaches, so F says little on this data.
- In square brackets: 95 % percentile bootstrap over the test videos (10,000 draws). *Above linear* is the
  difference to the linear row on the same videos, and its interval. Other seeds are not in the intervals: their
  range stands beside.
- *ms*: scoring 320 steps (about two and a half minutes of video) with PyTorch on the processor named below.
"""

FIGURES = """\
## In pictures

![Intervals of all models](results_intervals.svg)

![Score curves of two test videos against their annotators](results_curves.png)

`python -m benchmarks.figures` draws both.
"""

TRAINING = """\
## What was cut, and why networks lie below the line

The networks were trained on two processor cores, each for the epochs that its command names, where 40 to 1000 are
published; with one seed; on `tvsum_partition.json` only. SSPVS and AC-SUM-GAN, whose epochs take more than ten minutes
there, are not in the table, and no sweep was run. Rows of VSLUD, CSTA and the unsupervised models are of the first
epochs of many, and say little about what they reach.

- **Updates.** Few epochs are few updates. FCSN as published, five videos an update at 1e-3, makes seven an epoch: after
  five epochs its tau on held-out training videos was still .00 on both splits tried. Its row has one video an update,
  at 1e-2. CSTA's second epoch, its last here, still raised that tau on four of five splits, by .03 to .07.
- **Time.** Importance is smooth over time, and the linear row has a Gaussian over time; the networks have none.
  Smoothing their scores alike (3 steps), on two splits, gave PGL-SUM .009, VASNet .014 and DSNet .006 of tau: part of
  the distance, not all of it.
- **Scale, for F.** Dropout before a layer norm leaves the scores of PGL-SUM and VASNet far below the labels they were
  fitted to (a mean of .02 and .15 where the labels have .24). Ranks do not feel that, means of shots in a knapsack do:
  brought to the labels' mean and spread, the same scores gain 16 and 10 points of F on these two splits.
- **Dropout and rows of unit norm** are not the cause: VASNet without dropout was worse (.11 and .06 of tau on the
  first two splits after nine epochs, against .13 and .19), and with rows of one norm no better.
"""

EXPORTED = """\
What a bundle gives on each backend that this machine has, and its graph in half precision with every value rounded as
the graph says, against PyTorch in float32 on the test videos of a split (`python -m benchmarks.accuracy`). A backend
that changes a summary is named below the table. The machine did other work meanwhile: its milliseconds are no measure.
"""

DISAGREE = """\
## Why the field's tables disagree

- **Where the epoch is picked.** CSTA, VASNet, SSPVS and DSNet keep the epoch that is best on the test videos;
  PGL-SUM's first table averages the best test score of every split. The column *picked on test* shows what that is
  worth here.
- **What is called tau.** Against each annotator at the sampled steps (here, CA-SUM, PGL-SUM, CSTA on TVSum);
  against each at every frame (SSPVS); of the binary summary against the mean summary (CSTA on SumMe); against the
  mean annotator (MSVA), which is far larger. `vsum-evaluate --protocol` has all of them by name.
- **Which splits.** `tvsum_partition.json` is a true five-fold partition, every video tested once;
  `tvsum_certh.json` are five random draws that test 34 of the 50 videos, some of them several times. One annotator,
  who learns nothing, is as good on both; the linear row is better on the second.
- **How shots are valued.** One family of tools cuts the mean scores to thousandths before the knapsack (`--f-rule
  integer-family`), which changes the summaries of models with low scores.
- **Ranks and F are not the same question.** Scoring all steps alike, which ranks nothing, beats random scores by F on
  TVSum, because the knapsack then takes the shortest shots.
- **Zero is not the floor of every tau.** On SumMe the binary summary made of *random* scores agrees with the mean
  summary at a positive tau, so values under that protocol have to be read against the random row.
"""


def page(results: Path = RESULTS) -> str:
    """The whole page, from the files in a folder."""
    reports = {name: read_report(results / name) for name in (*TVSUM, SUMME)}
    published = json.loads((results / "published.json").read_text(encoding="utf-8"))
    scoring_file = results / "scoring.json"
    scoring = json.loads(scoring_file.read_text(encoding="utf-8")) if scoring_file.exists() else None
    parts = [INTRODUCTION]
    for name in TVSUM:
        parts += _tvsum_section(reports[name], scoring)
    parts += _summe_section(reports[SUMME])
    bundles = results / "bundles.json"
    if bundles.exists():
        told = accuracy.table(json.loads(bundles.read_text(encoding="utf-8")))
        parts += ["## Exported models\n", EXPORTED, told.replace("; commit", "; last row of commit", 1), ""]
    parts += _published_section(published)
    parts += [TRAINING, FIGURES, DISAGREE, "## Commands\n", *_commands(reports, scoring)]
    return "\n".join(parts).rstrip() + "\n"


def _heading(report: Mapping[str, Any]) -> str:
    splits, dataset = report["splits"], report["dataset"]
    return (
        f"Protocol `{report['protocol']}`, F rule `{report['f_rule']}`. Data `{dataset['name']}.h5` (sha256 "
        f"`{dataset['sha256'][:12]}`), splits `{splits['name']}` (sha256 `{splits['sha256'][:12]}`), "
        f"{len(splits['numbers'])} of them."
    )


def _tvsum_section(report: Mapping[str, Any], scoring: Mapping[str, Any] | None) -> list[str]:
    times = {} if scoring is None else {_key(row): row for row in scoring["rows"]}
    lines = [f"## TVSum, `{report['splits']['name']}`\n", _heading(report), ""]
    lines += [
        "| scores of | tau | rho | above linear (tau) | F mean % | F max % | seeds: range of tau "
        "| picked on test: tau / rho | parameters | ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(report["rows"], key=lambda row: -2.0 if row["tau"] is None else row["tau"], reverse=True):
        about = row["about"]
        apart = row["to_linear"].get("tau", {"difference": None})
        picked = about.get("picked_on_test")
        timed = times.get(_key(about)) if about else None
        cells = [
            f"**{row['name']}**" if about else row["name"],
            _rank(row, "tau"),
            _rank(row, "rho"),
            "" if apart["difference"] is None else f"{apart['difference']:+.3f}{bracket(apart['interval'], '+.3f')}",
            _share(row, "f_mean"),
            _share(row, "f_max"),
            spread(row, "tau") if about else "",
            "" if picked is None else f"{picked['tau']:.3f} / {picked['rho']:.3f}",
            f"{about['parameters']:,}" if about else "",
            "" if timed is None else f"{1000 * timed['p50_s']:.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = {row["name"]: row["left_out"] for row in report["rows"] if row["left_out"]}
    told = "; ".join(f"{name}: {count}" for name, count in left_out.items()) or "none"
    seen = [row["name"] for row in report["rows"] if row["seen_in_training"] != 0]
    lines += ["", f"Pairs of scores and annotator without a rank correlation, because a side is constant: {told}."]
    if seen:
        lines += [f"Not known to be free of test videos: {', '.join(seen)}."]
    return [*lines, ""]


def _summe_section(report: Mapping[str, Any]) -> list[str]:
    lines = ["## SumMe\n", _heading(report)]
    lines += [
        "Labels of all 25 videos, but features of three only, so no model is trained here: these are the rows that the "
        "harness gives on real labels. The field reports the *max* rule on this set. Shots are those of this file, not "
        "of the field's; an independent rerun with the field's shots had 41.5 for random scores.",
        "",
        "| scores of | tau | rho | F max % | F mean % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        cells = [row["name"], _rank(row, "tau"), _rank(row, "rho"), _share(row, "f_max"), _share(row, "f_mean")]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _published_section(published: Mapping[str, Any]) -> list[str]:
    lines = ["## What the papers report\n", published["note"], ""]
    lines += [
        "| model | TVSum tau / rho | TVSum F mean % | SumMe F max % | splits; how the epoch was picked | source |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in published["rows"]:
        ranks = "-" if row["tau"] is None else f"{row['tau']:.3f} / {row['rho']:.3f}"
        shares = ["-" if row[name] is None else f"{row[name]}" for name in ("tvsum_f", "summe_f")]
        lines.append(f"| {' | '.join([row['model'], ranks, *shares, row['selection'], row['source']])} |")
    return [*lines, ""]


def _commands(reports: Mapping[str, Mapping[str, Any]], scoring: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "`tvsum_prepared.h5` is what `vsum-datasets prepare` makes of TVSum with our features. Give each "
        "split file a folder of its own by `--runs`, to training and judge alike.",
        "",
        "```",
    ]
    for name in TVSUM:
        lines += [row["about"]["command"] for row in reports[name]["rows"] if row["about"]]
    for name, report in reports.items():
        runs = "--runs runs " if any(row["about"] for row in report["rows"]) else ""
        files = f"--dataset {report['dataset']['name']}.h5 --splits {report['splits']['name']}"
        lines.append(f"vsum-evaluate {runs}{files} --json benchmarks/results/{name}")
    lines += ["python -m benchmarks.results time --runs runs", "python -m benchmarks.results write", "```", ""]
    versions = sorted({json.dumps(report["versions"], sort_keys=True) for report in reports.values()})
    lines.append(f"Judged with {'; '.join(_versions(json.loads(text)) for text in versions)}.")
    if scoring is not None:
        about = scoring["machine"]
        lines.append(
            f"Times: {about['device']}, {scoring['threads']} threads, median of {scoring['runs']} runs, T = "
            f"{scoring['n_steps']}; {_versions(about['versions'])}."
        )
    return lines


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version != "absent")


def _rank(row: Mapping[str, Any], measure: str) -> str:
    return "-" if row[measure] is None else f"{row[measure]:.3f}{bracket(row['intervals'][measure])}"


def _share(row: Mapping[str, Any], measure: str) -> str:
    return "-" if row[measure] is None else f"{100 * row[measure]:.1f}"


def _key(about: Mapping[str, Any]) -> str:
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in about["options"].items()}  # as reports hold it
    return json.dumps([about["model"], rounded], sort_keys=True)


def measure(folders: Sequence[Path], *, runs: int = 31) -> dict[str, Any]:
    """Seconds that each model found in ``folders`` takes to score ``N_STEPS`` steps with PyTorch on the CPU."""
    import torch

    from vsum_runtime.training.checkpoint import load_model, read_metadata
    from vsum_runtime.training.scores import step_scores

    found: dict[str, Path] = {}
    about: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("best.safetensors")):
            metadata = read_metadata(path)
            options = metadata["options"]
            if isinstance((metadata["config"] or {}).get("settings"), list):  # the others are chosen by the fit
                options = {"rank": options["rank"]}
            entry = {"model": metadata["model"], "options": options}
            found.setdefault(_key(entry), path)
            about.setdefault(_key(entry), entry)
    if not found:
        raise InputError(f"--runs: no best.safetensors below {', '.join(map(str, folders))}")
    rows = []
    for key, path in sorted(found.items()):
        model, metadata = load_model(path)
        features = np.random.default_rng(0).random((N_STEPS, metadata["feature_dim"]), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        seconds = []
        for _ in range(runs + 2):
            began = time.perf_counter()
            step_scores(model, features)
            seconds.append(time.perf_counter() - began)
        low, middle, high = np.quantile(seconds[2:], [0.2, 0.5, 0.8])
        print(f"{about[key]['model']}: {1000 * middle:.3g} ms", file=sys.stderr, flush=True)
        rows.append({**about[key], "p20_s": low, "p50_s": middle, "p80_s": high})
    here = machine()
    here["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return {"machine": here, "threads": torch.get_num_threads(), "n_steps": N_STEPS, "runs": runs, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("write", help="write docs/measured/results.md from the rows")
    command.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    command.add_argument("--out", type=Path, default=PAGE, metavar="FILE.md")
    command = commands.add_parser("time", help="measure how long scoring takes")
    command.add_argument("--runs", nargs="+", type=Path, required=True, metavar="DIR")
    command.add_argument("--out", type=Path, default=RESULTS / "scoring.json", metavar="FILE.json")
    args = parser.parse_args(argv)
    try:
        text = page(args.results) if args.command == "write" else json.dumps(measure(args.runs), indent=1) + "\n"
        with replacing(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (VsumError, OSError) as error:
        print(f"benchmarks.results: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"wrote {os.path.relpath(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
