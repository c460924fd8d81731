"""The field's evaluation tools, reproduced through the protocol and the F rule that are named after them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsum_runtime.kernels import shot_scores
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.protocols import PROTOCOLS, choose, compare, f_scores

RECORDS = {
    "rank_at_picks_per_user": "tvsum-annotators-at-picks",
    "rank_full_rate_per_user_scores": "tvsum-annotators-full-rate",
    "rank_full_rate_2019_paper": "tvsum-annotators-full-rate",
    "rank_full_rate_per_user_summaries": "summaries-full-rate",
    "rank_summary_vs_mean_user_summary": "summe-summary-vs-mean",
    "rank_at_picks_vs_mean": "tvsum-mean-at-picks",
}
"""Record of the authors' code -> our name for what it measures."""


def parts(golden: Any, kind: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Cases of one kind, each with its arrays."""
    arrays = golden.arrays("evaluation")
    cases = golden.cases("evaluation")["evaluation" if kind == "eval" else "summary_generation"]
    return [
        (case, {key.split("/")[-1]: a for key, a in arrays.items() if key.startswith(f"{kind}/{case['id']}/")})
        for case in cases
    ]


def video_of(case: dict[str, Any], part: dict[str, np.ndarray]) -> Video:
    return Video(
        key=f"video_{case['id']}",
        n_frames=case["n_frames"],
        picks=part["picks"].astype(np.int64),
        user_summary=part["user_summary"] > 0,
        user_scores=part["user_scores"],
    )


def values(record: dict[str, Any], *names: str) -> list[float]:
    """Numbers of a golden record, whose null is NaN."""
    return [np.nan if record[name] is None else record[name] for name in names]


def test_every_protocol_is_one_of_the_fields() -> None:
    assert set(RECORDS.values()) == set(PROTOCOLS)


@pytest.mark.parametrize("record", RECORDS)
def test_rank_correlations_of_the_authors_are_reproduced(golden: Any, record: str) -> None:
    compared = 0
    for case, part in parts(golden, "eval"):
        if record not in case:
            continue
        scores, summary = part["scores"].astype(np.float64)[None], part["machine_summary"][None] > 0
        found = compare(video_of(case, part), scores, summary, PROTOCOLS[RECORDS[record]])[0]
        told = f"{case['id']} {record}"
        expected = values(case[record], "tau", "rho")
        np.testing.assert_allclose([found.tau.mean(), found.rho.mean()], expected, atol=1e-6, err_msg=told)
        if "per_user_tau" in case[record]:
            per_user = np.array([case[record]["per_user_tau"], case[record]["per_user_rho"]], dtype=float)
            np.testing.assert_allclose([found.tau, found.rho], per_user, atol=1e-6, err_msg=told)
        compared += 1
    assert compared >= 35


@pytest.mark.parametrize(
    ("record", "f_rule"), [("f_percent", "float-family"), ("f_fraction", "integer-family"), ("f_dsnet", "exact")]
)
def test_f_scores_of_the_authors_are_reproduced(golden: Any, record: str, f_rule: str) -> None:
    for case, part in parts(golden, "eval"):
        found = f_scores(part["machine_summary"] > 0, part["user_summary"] > 0, f_rule)
        expected = case[record]
        mean, most = values(expected, "avg", "max")
        if record == "f_fraction":
            mean, most = mean["f"], most["f"]  # type: ignore[index]
        scale = 100.0 if record == "f_percent" else 1.0
        got = [found.mean() * scale, max(found.tolist()) * scale]
        np.testing.assert_allclose(got, [mean, most], atol=1e-6, err_msg=str(case["id"]))
        if record == "f_percent":
            np.testing.assert_allclose(found * scale, np.array(expected["per_user"], dtype=float), atol=1e-6)


@pytest.mark.parametrize(
    ("author", "f_rule", "budget"),
    [
        ("csta", "float-family", "budget_last_shot"),
        ("sspvs", "integer-family", "budget_n_frames"),
        ("dsnet", "integer-family", "budget_n_frames"),
    ],
)
def test_summaries_of_the_authors_are_reproduced(golden: Any, author: str, f_rule: str, budget: str) -> None:
    """Equal shots; or, where two sets tie within what float32 means lose, equal value within the budget."""
    compared = 0
    for case, part in parts(golden, "summary"):
        if author not in case["selected"]:
            continue
        shots = part["change_points"].astype(np.int64) + np.array([0, 1])
        scores = part["scores"]
        if len(scores) < len(part["picks"]):  # published readers give the missing last score 0
            scores = np.append(scores, np.float32(0))
        means = shot_scores.pool(scores, part["picks"], shots, max(case["n_frames"], shots[-1, 1]))
        np.testing.assert_allclose(means, case["shot_scores_float32_mean"], atol=1e-6)
        lengths = shots[:, 1] - shots[:, 0]
        chosen = choose(means, lengths, case[budget], f_rule=f_rule)
        peer = np.array(case["selected"][author], dtype=np.int64)
        thousandths = np.trunc(1000 * means)
        if f_rule == "integer-family":  # that solver adds shots worth nothing where they happen to fit
            peer = peer[thousandths[peer] > 0]
        if chosen.tolist() != peer.tolist():
            worth = thousandths / 1000 if f_rule == "integer-family" else means
            assert abs(worth[chosen].sum() - worth[peer].sum()) < 1e-6, case["id"]
            assert lengths[chosen].sum() <= case[budget]
        compared += 1
    assert compared >= 24


def test_thousandths_hide_differences_and_change_the_choice() -> None:
    values, lengths = np.array([0.0106, 0.0106, 0.021]), np.array([10, 10, 20])
    assert choose(values, lengths, 20).tolist() == [0, 1]
    assert choose(values, lengths, 20, f_rule="integer-family").tolist() == [2]
