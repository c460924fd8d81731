"""The authors' evaluation, end to end: scores to shots to summary to F-score and rank correlation."""

import numpy as np

from kernels import knapsack, metrics, shot_scores


def half_open(change_points):
    return change_points.astype(np.int64) + np.array([0, 1])


def test_golden_summaries_are_reproduced(golden):
    arrays = golden.arrays("evaluation")
    for case in golden.cases("evaluation")["summary_generation"]:
        part = {key.split("/")[-1]: a for key, a in arrays.items() if key.startswith(f"summary/{case['id']}/")}
        shots = half_open(part["change_points"])
        scores = part["scores"]
        if len(scores) < len(part["picks"]):  # published readers give the missing last score 0
            scores = np.append(scores, np.float32(0))
        values = shot_scores.pool(scores, part["picks"], shots, max(case["n_frames"], shots[-1, 1]))
        np.testing.assert_allclose(values, case["shot_scores_float32_mean"], atol=1e-6)
        lengths = shots[:, 1] - shots[:, 0]
        chosen = knapsack.pack(values, lengths, case["budget_last_shot"])
        peer = case["selected"]["csta"]
        if chosen.tolist() != peer:
            assert abs(values[chosen].sum() - values[peer].sum()) < 1e-6, case["id"]
            assert lengths[chosen].sum() <= case["budget_last_shot"]


def test_golden_f_scores_are_reproduced(golden):
    arrays = golden.arrays("evaluation")
    for case in golden.cases("evaluation")["evaluation"]:
        found = metrics.f_scores(
            arrays[f"eval/{case['id']}/machine_summary"], arrays[f"eval/{case['id']}/user_summary"]
        )
        peer = case["f_dsnet"]
        np.testing.assert_allclose([found.mean(), found.max()], [peer["avg"], peer["max"]], atol=1e-6)
        if case["edge"] != "machine summary longer than user summary":  # that family pads the users instead of cutting
            expected = [0.0 if value is None else value / 100 for value in case["f_percent"]["per_user"]]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def at_picks(case, part):
    """Each annotator's importance at every 15th frame, one value per pick."""
    return part["user_scores"][:, ::15][:, : len(part["picks"])]


def spread(part, n_frames):
    """Step scores written out to every frame."""
    lengths = np.diff(part["picks"], append=n_frames)
    return np.repeat(part["scores"], lengths)


def test_golden_rank_correlations_are_reproduced(golden):
    arrays = golden.arrays("evaluation")
    for case in golden.cases("evaluation")["evaluation"]:
        part = {key.split("/")[-1]: a for key, a in arrays.items() if key.startswith(f"eval/{case['id']}/")}
        frames = spread(part, case["n_frames"])
        pairs = {
            "rank_at_picks_per_user": (part["scores"], at_picks(case, part)),
            "rank_full_rate_per_user_scores": (frames, part["user_scores"]),
            "rank_full_rate_2019_paper": (frames, part["user_scores"]),
            "rank_full_rate_per_user_summaries": (frames, part["user_summary"]),
            "rank_summary_vs_mean_user_summary": (part["machine_summary"], part["user_summary"].mean(axis=0)[None]),
            "rank_at_picks_vs_mean": (part["scores"], at_picks(case, part).mean(axis=0)[None]),
        }
        for name, (prediction, references) in pairs.items():
            if name not in case:
                continue
            taus = metrics.kendall_tau(prediction, references)
            rhos = metrics.spearman_rho(prediction, references)
            expected = np.array([case[name]["tau"], case[name]["rho"]], dtype=float)
            np.testing.assert_allclose([taus.mean(), rhos.mean()], expected, atol=1e-6, err_msg=f"{case['id']} {name}")
        per_user = case["rank_at_picks_per_user"]
        taus = metrics.kendall_tau(part["scores"], at_picks(case, part))
        rhos = metrics.spearman_rho(part["scores"], at_picks(case, part))
        np.testing.assert_allclose(taus, np.array(per_user["per_user_tau"], dtype=float), atol=1e-6)
        np.testing.assert_allclose(rhos, np.array(per_user["per_user_rho"], dtype=float), atol=1e-6)
