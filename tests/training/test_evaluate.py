"""The judge, against answers known by hand, from scipy, and from the literature."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

from vsum_runtime import runtime
from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.baselines import LinearBaseline
from vsum_runtime.training.cli import main as train
from vsum_runtime.training.datasets import Dataset, prepare, read_dataset, read_splits
from vsum_runtime.training.evaluate import main
from vsum_runtime.training.judge import (
    Agreement,
    Rules,
    default_rules,
    evaluate_scores,
    judge_ceiling,
    judge_human,
    judge_random,
    judge_uniform,
    mean,
)
from vsum_runtime.training.report import read_report
from vsum_runtime.training.rows import Row, reference_rows
from vsum_runtime.training.trained_rows import Scorer, row_of_path

PICKS, SUMME = Rules("tvsum-annotators-at-picks"), Rules("summe-summary-vs-mean")


@pytest.fixture
def one(write_video: Callable[..., Path]) -> Dataset:
    """The example video, whose budget of 30 frames only its third shot, frames 135 to 149, fits."""
    summary = np.zeros((2, 200))
    summary[0, 120:150] = 1
    summary[1, :20] = 1
    return read_dataset(write_video(user_summary=summary))


def test_f_scores_by_hand(one: Dataset) -> None:
    result = evaluate_scores(one, {"video_1": np.linspace(0.1, 0.9, 14)}, ["video_1"])["video_1"]
    f = 2 * 15 / (15 + 30)  # 15 frames chosen, all among the first user's 30; none among the second user's
    assert (result.f_mean, result.f_max) == (pytest.approx(f / 2), pytest.approx(f))


def test_ranks_are_those_of_scipy_averaged_over_annotators(one: Dataset, rng: np.random.Generator) -> None:
    scores = rng.random(14)
    result = evaluate_scores(one, {"video_1": scores}, ["video_1"])["video_1"]
    users = np.asarray(one.videos["video_1"].user_scores)[:, ::15]
    assert result.tau == pytest.approx(np.mean([stats.kendalltau(scores, user)[0] for user in users]))
    assert result.rho == pytest.approx(np.mean([stats.spearmanr(scores, user)[0] for user in users]))
    assert result.left_out == 0


def test_the_summe_protocol_ranks_the_summary_against_the_mean_summary(one: Dataset) -> None:
    scores = np.linspace(0.1, 0.9, 14)
    result = evaluate_scores(one, {"video_1": scores}, ["video_1"], SUMME)["video_1"]
    summary = np.zeros(200)
    summary[135:150] = 1
    reference = np.asarray(one.videos["video_1"].user_summary).mean(axis=0)
    assert result.tau == pytest.approx(stats.kendalltau(summary, reference)[0])
    assert result.rho == pytest.approx(stats.spearmanr(summary, reference)[0])


def test_a_constant_annotator_is_left_out_and_counted(write_video: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(1, 6, size=(3, 200))
    users[1] = 3
    dataset = read_dataset(write_video(user_scores=users, user_summary=np.ones((3, 200))))
    scores = rng.random(14)
    result = evaluate_scores(dataset, {"video_1": scores}, ["video_1"])["video_1"]
    assert result.left_out == 1
    assert result.tau == pytest.approx(np.mean([stats.kendalltau(scores, users[u, ::15])[0] for u in (0, 2)]))


def test_constant_scores_have_no_correlation(one: Dataset) -> None:
    result = evaluate_scores(one, {"video_1": np.full(14, 0.5)}, ["video_1"])["video_1"]
    assert math.isnan(result.tau)
    assert math.isnan(result.rho)
    assert result.left_out == 2


def test_a_mean_leaves_nan_out_and_adds_the_counts() -> None:
    nan = Agreement(0.2, 0.4, math.nan, math.nan, 20)
    assert mean([nan, Agreement(0.4, 0.8, 0.1, 0.3, 1)]) == Agreement(
        pytest.approx(0.3), pytest.approx(0.6), 0.1, 0.3, 21
    )
    assert math.isnan(mean([nan, nan]).tau)


def test_videos_are_averaged_within_a_split_before_splits() -> None:
    def result(tau: float) -> Agreement:
        return Agreement(0.0, 0.0, tau, tau)

    row = Row("x", {0: {1: {"video_1": result(0.1), "video_2": result(0.3)}, 2: {"video_3": result(0.6)}}})
    assert row.mean.tau == pytest.approx(0.4)


def test_with_two_annotators_the_ceiling_is_the_other_human(one: Dataset) -> None:
    video = one.videos["video_1"]
    human, ceiling = judge_human(video, PICKS), judge_ceiling(video, PICKS)
    users = np.asarray(video.user_scores)[:, ::15]
    assert human.tau == pytest.approx(stats.kendalltau(*users)[0])
    assert (ceiling.tau, ceiling.rho) == (pytest.approx(human.tau), pytest.approx(human.rho))


def test_perfect_scores_reach_one(write_video: Callable[..., Path]) -> None:
    """Annotators of one mind, whose order the scores share."""
    users = np.repeat(np.arange(14), 15)[None, :200].repeat(3, axis=0)
    dataset = read_dataset(write_video(user_scores=users, user_summary=np.ones((3, 200))))
    result = evaluate_scores(dataset, {"video_1": np.linspace(0, 1, 14)}, ["video_1"])["video_1"]
    assert (result.tau, result.rho) == (pytest.approx(1.0), pytest.approx(1.0))


def test_random_scores_do_not_correlate(one: Dataset) -> None:
    result = judge_random(one.videos["video_1"], PICKS, draws=400)
    assert abs(result.tau) < 0.05


@pytest.mark.parametrize("scores", [np.ones(13), np.full(14, np.nan), np.ones((14, 1))])
def test_scores_of_another_length_or_not_finite_are_refused(one: Dataset, scores: np.ndarray) -> None:
    with pytest.raises(InputError, match="video_1: expected 14 finite scores"):
        evaluate_scores(one, {"video_1": scores}, ["video_1"])


def test_the_protocol_follows_the_labels(one: Dataset, write_video: Callable[..., Path]) -> None:
    assert default_rules(one) == PICKS
    unscored = read_dataset(write_video(user_scores=None))
    assert default_rules(unscored) == SUMME
    with pytest.raises(InputError, match="video_1/user_scores is missing"):
        evaluate_scores(unscored, {"video_1": np.ones(14)}, ["video_1"], PICKS)
    with pytest.raises(InputError, match="protocol: expected one of"):
        Rules("any")


def test_humans_are_judged_without_graded_scores_under_the_summe_protocol(write_video: Callable[..., Path]) -> None:
    bare = read_dataset(write_video(user_scores=None, gtscore=None)).videos["video_1"]
    first, second = np.asarray(bare.user_summary).astype(float)
    assert judge_human(bare, SUMME).tau == pytest.approx(stats.kendalltau(first, second)[0])


@pytest.fixture
def prepared(eight_videos: tuple[Path, Path]) -> tuple[str, str]:
    """The eight videos with shots and user summaries, and their split file."""
    target = eight_videos[0].with_name("eight_kts.h5")
    prepare(eight_videos[0], target)
    return str(target), str(eight_videos[1])


def test_the_door_judges_a_checkpoint_beside_the_other_rows(
    eight_videos: tuple[Path, Path], prepared: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on the file that the judged one was prepared from, so that seen videos are known."""
    common = ["--model", "pgl_sum", "--option", "heads=2", "--option", "num_segments=2", "--epochs", "1"]
    common += ["--dataset", str(eight_videos[0]), "--runs", str(tmp_path / "runs")]
    assert train([*common, "--splits", str(eight_videos[1])]) == 0
    assert train([*common, "--split", "whole", "--select", "last"]) == 0
    run = tmp_path / "runs/eight/pgl_sum"
    files = ["--dataset", prepared[0], "--splits", prepared[1], "--draws", "2", "--json", str(tmp_path / "out.json")]
    capsys.readouterr()

    assert main(["--checkpoint", f"{run}/split{{split}}/best.safetensors", *files]) == 0
    out = capsys.readouterr().out
    assert f"Protocol `{PICKS.protocol}`, F rule `exact`" in out
    result = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in result["rows"]] == [
        "pgl_sum, checkpoint of epoch 1",
        "random (2 draws)",
        "uniform (all steps alike)",
        "one human",
        "leave-one-out ceiling",
        "linear, smoothed",
    ]
    assert result["protocol"] == PICKS.protocol
    assert result["splits"]["numbers"] == [1]
    assert [len(result[part]["sha256"]) for part in ("dataset", "splits")] == [64, 64]
    model = result["rows"][0]
    assert model["seen_in_training"] == 0
    assert list(model["videos"]["0"]["1"]) == ["video_7", "video_8"]
    assert f"| {model['tau']:.3f} [" in out

    assert main(["--checkpoint", f"{run}/whole/best.safetensors", *files]) == 0
    assert "**has seen 2 test videos in training**" in capsys.readouterr().out


def test_the_door_judges_a_bundle(
    prepared: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the runtime, which scores a step by its first feature."""
    splits_sha256 = read_splits(prepared[1], read_dataset(prepared[0])).sha256
    source_sha256 = read_dataset(prepared[0]).source_sha256

    class FirstFeature:
        name, backend = "first", "stand-in"
        manifest: ClassVar[dict[str, Any]] = {
            "graph": {"precision": "fp32"},
            "training": {
                "dataset": {"name": "eight", "sha256": source_sha256},
                "splits": {"sha256": splits_sha256},
                "split": 1,
            },
        }

        def __init__(self, path: Path) -> None:
            assert path == tmp_path / "first-split1"
            self.bundle = self

        def __enter__(self) -> FirstFeature:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def score(self, features: list[np.ndarray]) -> list[np.ndarray]:
            return [rows[:, 0] - rows[:, 0].min() for rows in features]

    monkeypatch.setattr(runtime, "Summarizer", FirstFeature, raising=False)
    files = ["--dataset", prepared[0], "--splits", prepared[1], "--draws", "1", "--json", str(tmp_path / "out.json")]
    assert main(["--bundle", f"{tmp_path}/first-split{{split}}", "--split", "1", *files]) == 0
    row = json.loads((tmp_path / "out.json").read_text())["rows"][0]
    dataset = read_dataset(prepared[0])
    scores = {key: np.asarray(dataset.videos[key].features)[:, 0] for key in ("video_7", "video_8")}
    expected = mean(list(evaluate_scores(dataset, {k: v - v.min() for k, v in scores.items()}, list(scores)).values()))
    assert row["name"] == "first, fp32 bundle on stand-in"
    assert row["seen_in_training"] == 0
    assert (row["tau"], row["f_mean"]) == (pytest.approx(expected.tau), pytest.approx(expected.f_mean))
    assert "first, fp32 bundle on stand-in" in capsys.readouterr().out


def test_a_model_that_learned_from_features_of_another_recipe_is_judged_with_a_warning(
    prepared: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    splits = read_splits(prepared[1], read_dataset(prepared[0]))
    dataset = dataclasses.replace(read_dataset(prepared[0]), recipe="googlenet abc")

    def scorer(recipe: str) -> Scorer:
        return lambda _, features: ("m", {"dataset": {"recipe": recipe}}, [rows[:, 0] for rows in features])

    for recipe, n_warnings in (("", 0), ("googlenet abc", 0), ("efficientnet_lite0 def", 1)):
        caplog.clear()
        row_of_path(dataset, splits, splits.splits[:1], PICKS, "m", scorer(recipe))
        assert caplog.text.count("'efficientnet_lite0 def'") == n_warnings == len(caplog.records)


def test_numbers_that_do_not_exist_are_null_in_json_and_a_dash_in_the_table(
    write_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(user_scores=np.full((2, 200), 3), features=None)
    (tmp_path / "s.json").write_text('[{"train_keys": [], "test_keys": ["video_1"]}]')
    out = tmp_path / "out.json"
    assert main(["--dataset", str(path), "--splits", str(tmp_path / "s.json"), "--draws", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "random (1 draws)",
        "uniform (all steps alike)",
        "one human",
        "leave-one-out ceiling",
    ]
    assert [row["tau"] for row in rows] == [None] * 4
    assert "| - | - |  | 1 | 2 |" in capsys.readouterr().out


def test_a_single_annotator_is_judged_by_nobody(write_video: Callable[..., Path], tmp_path: Path) -> None:
    """As in Mr.HiSum's files: the importance comes from many people, the summary is one."""
    path = write_video(user_summary=None, user_scores=None, gt_summary=np.arange(200) < 30)
    dataset = read_dataset(path)
    (tmp_path / "s.json").write_text('[{"train_keys": [], "test_keys": ["video_1"]}]')
    splits = read_splits(tmp_path / "s.json", dataset).splits
    unfitted = Dataset("one", "", "", "", {"video_1": dataclasses.replace(dataset.videos["video_1"], features=None)})
    for protocol in ("summe-summary-vs-mean", "summaries-full-rate"):
        rows = reference_rows(unfitted, splits, Rules(protocol), draws=2)
        assert [row.name for row in rows] == ["random (2 draws)", "uniform (all steps alike)"]
    scored = dataclasses.replace(unfitted.videos["video_1"], user_scores=np.arange(200)[None])
    rows = reference_rows(dataclasses.replace(unfitted, videos={"video_1": scored}), splits, PICKS, draws=2)
    assert [row.name for row in rows] == ["random (2 draws)", "uniform (all steps alike)"]


def test_an_unprepared_data_set_is_told_how_to_become_one(
    eight_videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dataset", str(eight_videos[0]), "--splits", str(eight_videos[1])]) == 2
    assert "run: vsum-datasets prepare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--split", "3"], "expected 1 .. 1"),
        (["--checkpoint", "none.safetensors"], "none.safetensors: expected a checkpoint"),
        (["--draws", "0"], "--draws: expected a whole number, 1 or more"),
        (["--json", "nowhere/out.json"], "nowhere"),
    ],
)
def test_a_wrong_argument_ends_with_code_2_and_a_reason(
    prepared: tuple[str, str], capsys: pytest.CaptureFixture[str], wrong: list[str], told: str
) -> None:
    assert main(["--dataset", prepared[0], "--splits", prepared[1], "--draws", "1", *wrong]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("vsum-evaluate: ")
    assert told in err
    assert out == ""


@pytest.fixture(scope="module")
def tvsum(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    target = tmp_path_factory.mktemp("tvsum") / "tvsum_efflite0.h5"
    prepare(real_data / "tvsum_efflite0.h5", target)
    return read_dataset(target)


@pytest.mark.slow
def test_humans_on_tvsum_agree_as_published(tvsum: Dataset, real_data: Path) -> None:
    splits = read_splits(real_data / "splits/tvsum_partition.json", tvsum)
    unfitted = dataclasses.replace(
        tvsum, videos={key: dataclasses.replace(video, features=None) for key, video in tvsum.videos.items()}
    )
    rows = {row.name: row.mean for row in reference_rows(unfitted, splits.splits, PICKS)}
    assert (round(rows["one human"].tau, 3), round(rows["one human"].rho, 3)) == (0.177, 0.204)
    ceiling = rows["leave-one-out ceiling"]
    assert (round(ceiling.tau, 3), round(ceiling.rho, 3)) == (0.314, 0.396)
    assert abs(rows["random (100 draws)"].tau) < 0.01
    assert sum(row.left_out for row in rows.values()) == rows["uniform (all steps alike)"].left_out == 1000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tau", "rho"), [("partition", 0.199, 0.260), ("certh", 0.208, 0.272)])
def test_the_linear_baseline_on_tvsum(tvsum: Dataset, real_data: Path, name: str, tau: float, rho: float) -> None:
    by_split = {}
    for split in read_splits(real_data / f"splits/tvsum_{name}.json", tvsum).splits:
        line = LinearBaseline.fit(tvsum.select(split.train_keys))
        scores = {key: line.score(tvsum.videos[key]) for key in split.test_keys}
        by_split[split.number] = evaluate_scores(tvsum, scores, split.test_keys)
    result = Row("linear", {0: by_split}).mean
    assert (round(result.tau, 3), round(result.rho, 3)) == (tau, rho)


@pytest.mark.slow
def test_summe_by_its_own_labels(real_data: Path) -> None:
    """Random scores reach an F of about 41 by the rule of the maximum, with the shots of this file, not the field's."""
    summe = read_dataset(real_data / "summe_labels.h5")
    splits = read_splits(real_data / "splits/summe_partition.json", summe)
    rows = {row.name: row.mean for row in reference_rows(summe, splits.splits, SUMME, draws=20)}
    assert rows["random (20 draws)"].f_max == pytest.approx(0.41, abs=0.01)
    assert rows["one human"].f_max > 0.5 > rows["uniform (all steps alike)"].f_max


def test_scoring_all_steps_alike_takes_the_shortest_shots(one: Dataset) -> None:
    result = judge_uniform(one.videos["video_1"], PICKS)
    assert result.f_max == pytest.approx(2 * 15 / (15 + 30))
    assert math.isnan(result.tau)


def test_a_folder_of_runs_becomes_one_row_per_recipe_with_all_its_seeds(
    prepared: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One seed lacks a split and is left out; so is a run on other splits, which lies in the same folder."""
    keys = [f"video_{n}" for n in range(1, 9)]
    halves = [{"train_keys": keys[:6], "test_keys": keys[6:]}, {"train_keys": keys[2:], "test_keys": keys[:2]}]
    (tmp_path / "two.json").write_text(json.dumps(halves))
    common = ["--model", "vasnet", "--epochs", "1", "--dataset", prepared[0], "--runs", str(tmp_path / "runs")]
    for seed, split in ((0, "1"), (0, "2"), (1, "1"), (1, "2"), (2, "1")):
        assert train([*common, "--splits", str(tmp_path / "two.json"), "--split", split, "--seeds", str(seed)]) == 0
    assert train([*common, "--splits", prepared[1], "--select", "last", "--seeds", "7", "--peek-test"]) == 0
    capsys.readouterr()

    out = tmp_path / "out.json"
    files = ["--dataset", prepared[0], "--runs", str(tmp_path / "runs"), "--draws", "1", "--json", str(out)]
    assert main([*files, "--splits", str(tmp_path / "two.json")]) == 0
    told = capsys.readouterr().err
    assert "left out vasnet, seed 2: it lacks split 2" in told
    assert "it learned from other splits" in told
    row = read_report(out)["rows"][0]
    assert (row["name"], list(row["seed_means"]), row["seen_in_training"]) == ("vasnet", ["0", "1"], 0)
    assert row["tau"] == pytest.approx(np.mean([row["seed_means"][seed]["tau"] for seed in "01"]), abs=2e-6)
    assert re.search(r" --split all --epochs 1 --threads \d+ --seeds 0,1$", row["about"]["command"])
    assert row["about"]["picked_on_test"] is None
    low, high = row["intervals"]["tau"]
    assert low <= row["tau"] <= high
    linear = next(other for other in read_report(out)["rows"] if other["name"] == "linear, smoothed")
    assert row["to_linear"]["tau"]["difference"] == pytest.approx(row["tau"] - linear["tau"], abs=2e-6)

    assert main([*files, "--splits", prepared[1]]) == 0
    row = read_report(out)["rows"][0]
    assert re.search(r"--split all --epochs 1 --select last --threads \d+ --seeds 7$", row["about"]["command"])
    assert row["about"]["picked_on_test"]["tau"] == pytest.approx(row["tau"], abs=1e-6)  # there is one epoch


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": "vsum-evaluation", "format_version": 1}')
    with pytest.raises(InputError, match="version 2; write it again"):
        read_report(tmp_path / "old.json")
