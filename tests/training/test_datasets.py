"""Data set files, split files and ``prepare``."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vsum_runtime.runtime.errors import InputError, VsumError
from vsum_runtime.training import datasets
from vsum_runtime.training.datasets import (
    find_file,
    importance_at_picks,
    prepare,
    read_dataset,
    read_splits,
    unit_rows,
    user_summaries_from_scores,
)
from vsum_runtime.training.datasets.cli import main

WriteVideo = Callable[..., Path]


def test_shots_become_half_open(write_video: WriteVideo) -> None:
    video = read_dataset(write_video()).videos["video_1"]
    assert video.shots is not None
    assert video.shots.tolist() == [[0, 60], [60, 135], [135, 150], [150, 200]]
    assert (video.n_frames, video.capacity) == (200, 30)


def test_any_integer_type_one_element_scalars_and_unknown_fields_are_read(write_video: WriteVideo) -> None:
    path = write_video(
        picks=np.arange(0, 200, 15, dtype=np.int32),
        n_frames=np.array([200], dtype=np.uint16),
        n_steps=None,
        change_points=np.array([[0, 59], [60, 199]], dtype=np.float32),
        n_frame_per_seg=None,
        video_name=b"Air_Force_One",
        features=np.ones((14, 5), dtype=np.float16),
        category=b"GA",
    )
    video = read_dataset(path).videos["video_1"]
    assert video.picks.dtype == np.int64
    assert video.features is not None
    assert video.features.dtype == np.float32
    assert video.shots is not None
    assert video.shots.tolist() == [[0, 60], [60, 200]]


def test_user_summary_is_binarised_above_zero(write_video: WriteVideo) -> None:
    summary = np.zeros((3, 200), dtype=np.float32)
    summary[1, 5] = 0.25
    stored = read_dataset(write_video(user_summary=summary, user_scores=None)).videos["video_1"].user_summary
    assert stored is not None
    assert stored.dtype == np.bool_
    assert np.argwhere(stored).tolist() == [[1, 5]]


def test_a_last_pick_equal_to_n_frames_is_accepted(write_video: WriteVideo) -> None:
    path = write_video(n_frames=195, change_points=None, n_frame_per_seg=None, user_summary=None, user_scores=None)
    assert read_dataset(path).videos["video_1"].picks[-1] == 195


def test_videos_come_in_the_order_of_their_numbers(eight_videos: tuple[Path, Path], tmp_path: Path) -> None:
    with h5py.File(eight_videos[0], "r") as old, h5py.File(tmp_path / "ten.h5", "w") as new:
        for number in (10, 1, 2):
            old.copy("video_1", new, name=f"video_{number}")
    assert list(read_dataset(tmp_path / "ten.h5").videos) == ["video_1", "video_2", "video_10"]


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("features", {"features": np.ones((13, 16), dtype=np.float32)}),
        ("features", {"features": np.full((14, 16), np.nan, dtype=np.float32)}),
        ("features", {"features": np.ones(14, dtype=np.float32)}),
        ("gtscore", {"gtscore": np.ones(15, dtype=np.float32)}),
        ("n_steps", {"n_steps": 13}),
        ("n_frames", {"n_frames": 0}),
        ("picks", {"picks": None, "n_frames": 400, "user_summary": None, "user_scores": None}),
        ("picks", {"picks": np.arange(0, 200, 15) + 1}),
        ("picks", {"picks": np.zeros(14, dtype=np.int64)}),
        ("picks", {"picks": np.arange(0, 200, 15) + 0.5}),
        ("picks", {"n_frames": 190}),
        ("change_points", {"change_points": np.array([[1, 59], [60, 199]])}),
        ("change_points", {"change_points": np.array([[0, 59], [61, 199]])}),
        ("change_points", {"change_points": np.array([[0, 60], [60, 199]])}),
        ("change_points", {"change_points": np.array([[0, 59], [60, 198]])}),
        ("change_points", {"change_points": np.array([[0, 59], [60, 59], [60, 199]])}),
        ("change_points", {"change_points": np.array([0, 199])}),
        ("n_frame_per_seg", {"n_frame_per_seg": np.array([60, 75, 15, 49])}),
        ("user_summary", {"user_summary": np.ones((2, 199))}),
        ("user_summary", {"user_summary": np.ones((0, 200))}),
        ("user_scores", {"user_scores": np.ones(200)}),
        ("user_scores", {"user_scores": np.ones((3, 200))}),
        ("user_scores", {"user_scores": np.full((2, 200), np.inf)}),
    ],
)
def test_a_broken_invariant_names_file_video_and_field(
    write_video: WriteVideo, field: str, changed: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=rf"^one\.h5: video_1/{field}: expected "):
        read_dataset(write_video(**changed))


def test_repair_lists_every_change(write_video: WriteVideo) -> None:
    short = np.array([[0, 59], [60, 134], [135, 149], [150, 190]])
    dataset = read_dataset(write_video(change_points=short, n_frame_per_seg=np.array([1, 2, 3, 4])), repair=True)
    assert dataset.videos["video_1"].shots is not None
    assert dataset.videos["video_1"].shots[-1].tolist() == [150, 200]
    assert dataset.repairs == (
        "video_1/change_points: last shot ended at 190, now 199",
        "video_1/n_frame_per_seg: recomputed from the shots",
    )
    assert read_dataset(write_video(), repair=True).repairs == ()


def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name, told in (("text.h5", "cannot open it"), ("none.h5", "cannot open it"), ("empty.h5", "found none")):
        with pytest.raises(InputError, match=told):
            read_dataset(tmp_path / name)


def test_selecting_what_is_not_there_says_so(write_video: WriteVideo) -> None:
    dataset = read_dataset(write_video(change_points=None, n_frame_per_seg=None, gtscore=None))
    with pytest.raises(InputError, match="no video video_9; it has video_1"):
        dataset.select(["video_9"])
    with pytest.raises(InputError, match="video_1/change_points is missing; run: vsum-datasets prepare"):
        dataset.select(["video_1"], need=("shots",))
    with pytest.raises(InputError, match="video_1/gtscore is missing; choose a file that has it"):
        dataset.select(["video_1"], need=("features", "gtscore"))


def test_importance_at_picks_falls_back_to_gtscore(write_video: WriteVideo) -> None:
    video = read_dataset(write_video()).videos["video_1"]
    assert video.user_scores is not None
    assert np.array_equal(importance_at_picks(video), video.user_scores[:, ::15])
    bare = read_dataset(write_video(user_scores=None)).videos["video_1"]
    assert bare.gtscore is not None
    assert np.array_equal(importance_at_picks(bare), bare.gtscore[None].astype(np.float64))


def test_unit_rows_leaves_zero_rows_zero() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert rows.dtype == np.float32
    assert np.allclose(rows, [[0.6, 0.8], [0.0, 0.0]])


def test_files_are_looked_for_in_vsum_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.h5").touch()
    monkeypatch.setenv("VSUM_DATA", str(tmp_path))
    assert find_file("there.h5") == tmp_path / "there.h5"
    assert find_file(tmp_path / "there.h5") == tmp_path / "there.h5"


@pytest.fixture
def eight(eight_videos: tuple[Path, Path]) -> datasets.Dataset:
    return read_dataset(eight_videos[0])


def keys_of(splits: datasets.Splits) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    assert [split.number for split in splits.splits] == list(range(1, len(splits.splits) + 1))
    return [(split.train_keys, split.test_keys) for split in splits.splits]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "eccv16_dataset_tvsum_google_pool5/",
        "../datasets/x_summe_google_pool5.h5/",
        "..\\datasets\\own.h5\\",
        "/home/me/tvsum/own.h5/",
    ],
)
def test_split_keys_may_be_paths(tmp_path: Path, eight: datasets.Dataset, prefix: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"test_keys": [f"{prefix}video_2"], "train_keys": [f"{prefix}video_1"]}] * 2))
    splits = read_splits(path, eight)
    assert keys_of(splits) == [(("video_1",), ("video_2",))] * 2
    assert splits.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("block", [True, False])
def test_splits_may_be_yaml(tmp_path: Path, eight: datasets.Dataset, block: bool) -> None:
    path, before = tmp_path / "tvsum.yml", "../datasets/eccv16_dataset_tvsum_google_pool5.h5"
    if block:
        entry = f"- test_keys:\n  - {before}/video_5\n  - {before}/video_6\n  train_keys:\n  - {before}/video_1\n"
    else:
        entry = f"- {{train_keys: [{before}/video_1], test_keys: [{before}/video_5, '{before}/video_6']}}  # flow\n"
    path.write_text(f"# made by a script\n{entry * 2}")
    assert keys_of(read_splits(path, eight)) == [(("video_1",), ("video_5", "video_6"))] * 2


@pytest.mark.parametrize("named", [False, True])
def test_a_split_file_may_be_one_object_with_its_own_validation_part(
    tmp_path: Path, eight: datasets.Dataset, named: bool
) -> None:
    split = {"train_keys": ["video_1", "video_2"], "val_keys": ["video_4"], "test_keys": ["video_5"]}
    (tmp_path / "s.json").write_text(json.dumps({"split0": split, "split1": split} if named else split))
    splits = read_splits(tmp_path / "s.json", eight)
    assert keys_of(splits) == [(("video_1", "video_2"), ("video_5",))] * (2 if named else 1)
    assert splits.splits[0].validation_keys == ("video_4",)


def test_of_several_sets_the_largest_that_is_there_is_taken(tmp_path: Path, eight: datasets.Dataset) -> None:
    path = tmp_path / "splits.txt"
    path.write_text(
        "SumMe/split0/video_1,video_2/video_3\nTVSum/split0/video_4,video_5/video_6\nTVSum/split1/video_6/video_7\n"
        "OVP/split0/video_1,video_2,video_3,video_4,video_5/video_99\n"
    )
    assert keys_of(read_splits(path, eight)) == [(("video_4", "video_5"), ("video_6",)), (("video_6",), ("video_7",))]
    path.write_text("SumMe/split0/video_1,video_2/video_3\nTVSum/split0/video_4,video_5/video_6\n")
    with pytest.raises(InputError, match="its splits of summe, tvsum fit eight equally"):
        read_splits(path, eight)


def test_whose_split_it_is_is_told_by_the_videos_not_by_names(tmp_path: Path, write_video: WriteVideo) -> None:
    (tmp_path / "tvsum").mkdir()
    real = write_video(n_frames=10597, picks=np.arange(14), change_points=None, user_summary=None, user_scores=None)
    prepared = read_dataset(real.rename(tmp_path / "tvsum" / "summe_prepared.h5"))
    (tmp_path / "s.json").write_text('{"train_keys": ["eccv16_dataset_tvsum_google_pool5/video_1"], "test_keys": []}')
    assert keys_of(read_splits(tmp_path / "s.json", prepared)) == [(("video_1",), ())]
    (tmp_path / "s.json").write_text('{"train_keys": ["summe/video_1"], "test_keys": []}')
    with pytest.raises(InputError, match=r"videos are of summe, but belong to another data set .* those of tvsum"):
        read_splits(tmp_path / "s.json", prepared)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"train_keys": ["video_1"], "test_keys": ["video_1"]}]', "video_1 in both"),
        ('[{"train_keys": ["video_1", "video_1"], "test_keys": []}]', "train_keys repeats a video"),
        ('[{"train_keys": ["video_1"], "test_keys": ["video_99"]}]', "video_99 is not in"),
        ('[{"train_keys": ["summe/video_1"], "test_keys": ["ovp/video_2"]}]', "videos of ovp, summe"),
        ('[{"train_keys": ["video_1"]}]', "got an entry of train_keys"),
        ('[{"train_keys": [1], "test_keys": []}]', "keys that are strings"),
        ("[", "expected a list of {train_keys, test_keys}"),
        ("- train_keys: [1]\n  test_keys: []\n", "keys that are strings"),
        ("- !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("[]", "no splits"),
        ("SumMe/split0/video_1/video_99", "video_99 is not in"),
        ("hello", "no splits"),
        ("7", "expected a list of {train_keys, test_keys}"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path: Path, eight: datasets.Dataset, content: str, told: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(InputError, match=told):
        read_splits(tmp_path / "s.json", eight)


def test_splits_are_numbered_from_one(tmp_path: Path, eight: datasets.Dataset) -> None:
    (tmp_path / "s.json").write_text(json.dumps([{"train_keys": ["video_1"], "test_keys": ["video_2"]}] * 3))
    splits = read_splits(tmp_path / "s.json", eight)
    assert [split.number for split in splits.select(["all"])] == [1, 2, 3]
    assert [split.number for split in splits.select(["3", "1"])] == [3, 1]
    assert [split.number for split in splits.select(["1, 2", "3"])] == [1, 2, 3]
    for wrong in ("0", "4", "-1", "first"):
        with pytest.raises(InputError, match=r"expected 1 \.\. 3 or 'all'"):
            splits.select([wrong])


def test_user_summaries_are_the_best_choice_within_the_budget() -> None:
    rng = np.random.default_rng(1)
    shots = np.array([[0, 7], [7, 12], [12, 20], [20, 23], [23, 40]])
    lengths = shots[:, 1] - shots[:, 0]
    scores = rng.integers(1, 6, size=(6, 40))
    summaries = user_summaries_from_scores(scores, shots, capacity=16)
    for row, summary in zip(scores, summaries, strict=True):
        values = np.array([row[start:end].mean() for start, end in shots])
        chosen = np.array([summary[start] for start, _ in shots])
        assert all((summary[start:end] == kept).all() for (start, end), kept in zip(shots, chosen, strict=True))
        subsets = (np.array(mask, dtype=bool) for mask in itertools.product([0, 1], repeat=5))
        best = max(values[mask].sum() for mask in subsets if lengths[mask].sum() <= 16)
        assert lengths[chosen].sum() <= 16
        assert values[chosen].sum() == pytest.approx(best)


def test_prepare_adds_shots_and_summaries_and_leaves_the_source_alone(
    eight_videos: tuple[Path, Path], tmp_path: Path
) -> None:
    source, target = eight_videos[0], tmp_path / "prepared.h5"
    before = source.read_bytes()
    added = prepare(source, target)
    assert source.read_bytes() == before
    assert len(added) == 16
    old, new = read_dataset(source), read_dataset(target)
    assert new.source_sha256 == old.sha256
    for key, video in new.videos.items():
        assert video.shots is not None
        assert video.user_summary is not None
        assert video.user_summary.shape == (3, video.n_frames)
        assert (video.user_summary.sum(axis=1) <= video.capacity).all()
        assert np.array_equal(video.features, old.videos[key].features)
    with h5py.File(target) as file:
        assert file["video_1/user_summary"].dtype == np.uint8
        assert "KTS" in file["video_1"].attrs["shots_recipe"]
        assert "knapsack" in file["video_1"].attrs["user_summary_recipe"]


def test_the_same_source_gives_the_same_bytes(eight_videos: tuple[Path, Path], tmp_path: Path) -> None:
    prepare(eight_videos[0], tmp_path / "a.h5")
    prepare(eight_videos[0], tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_preparing_a_prepared_file_changes_nothing(eight_videos: tuple[Path, Path], tmp_path: Path) -> None:
    prepare(eight_videos[0], tmp_path / "once.h5")
    assert prepare(tmp_path / "once.h5", tmp_path / "twice.h5") == []
    with h5py.File(tmp_path / "once.h5") as once, h5py.File(tmp_path / "twice.h5") as twice:
        assert dict(once.attrs) == dict(twice.attrs)
        for key, group in once.items():
            assert dict(group.attrs) == dict(twice[key].attrs)
            assert group.keys() == twice[key].keys()
            assert all(np.array_equal(group[name][()], twice[key][name][()]) for name in group)


def test_prepare_keeps_the_shots_a_file_has(write_video: WriteVideo, tmp_path: Path) -> None:
    added = prepare(write_video(user_summary=None), tmp_path / "out.h5")
    assert added == ["video_1/user_summary: 2 annotators"]
    video = read_dataset(tmp_path / "out.h5").videos["video_1"]
    assert video.shots is not None
    assert len(video.shots) == 4


def test_prepare_writes_repaired_shots(write_video: WriteVideo, tmp_path: Path) -> None:
    short = np.array([[0, 59], [60, 190]])
    path = write_video(change_points=short, n_frame_per_seg=np.array([60, 131]))
    with pytest.raises(InputError, match="video_1/change_points"):
        prepare(path, tmp_path / "out.h5")
    assert main(["prepare", str(path), str(tmp_path / "out.h5"), "--repair"]) == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["video_1/change_points"][()].tolist() == [[0, 59], [60, 199]]
        assert file["video_1/n_frame_per_seg"][()].tolist() == [60, 140]


def write_table(path: Path, rows: list[tuple[str, np.ndarray]]) -> Path:
    path.write_text("".join(f"{title}\tVT\t{','.join(map(str, row))}\n" for title, row in rows))
    return path


@pytest.mark.parametrize("name", [b"AwmHb44_ouw", "AwmHb44_ouw", np.array([b"AwmHb44_ouw.mp4"])])
def test_prepare_adds_the_annotations_of_tvsum(write_video: WriteVideo, tmp_path: Path, name: Any) -> None:
    scores = np.random.default_rng(0).integers(1, 6, size=(2, 200))
    table = write_table(tmp_path / "ydata-anno.tsv", [("AwmHb44_ouw", row) for row in scores])
    path = write_video(user_scores=None, video_name=name)
    assert prepare(path, tmp_path / "out.h5", annotations=table) == ["video_1/user_scores: 2 annotators"]
    video = read_dataset(tmp_path / "out.h5").videos["video_1"]
    assert np.array_equal(video.user_scores, scores)
    assert video.user_summary is not None
    assert len(video.user_summary) == 2


def test_a_heading_is_passed_over_and_titles_may_have_suffixes(write_video: WriteVideo, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).integers(1, 6, size=(2, 200))
    table = write_table(tmp_path / "table.tsv", [("AwmHb44_ouw.mp4", row) for row in scores])
    table.write_text("video_id\tcategory\tannotations\n" + table.read_text())
    path = write_video(user_scores=None, video_name=b"AwmHb44_ouw")
    assert prepare(path, tmp_path / "out.h5", annotations=table) == ["video_1/user_scores: 2 annotators"]
    assert np.array_equal(read_dataset(tmp_path / "out.h5").videos["video_1"].user_scores, scores)


@pytest.mark.parametrize("n_more", [0, 1])
def test_annotations_are_joined_by_title_whatever_their_order(
    write_dataset: Callable[[dict[str, Any]], Path], tmp_path: Path, n_more: int
) -> None:
    """All videos are equally long, so that rows of the wrong video would fit."""
    draws = np.random.default_rng(1)
    scores = {title: draws.integers(1, 6, size=(2, 200 + n_more)) for title in ("zebra", "video_2", "apple")}
    names = {"video_1": b"apple", "video_2": None, "video_3": b"zebra"}
    path = write_dataset({key: {"user_scores": None, "video_name": name} for key, name in names.items()})
    rows = [(title, rows[user]) for user in (0, 1) for title, rows in scores.items()]
    prepare(path, tmp_path / "out.h5", annotations=write_table(tmp_path / "anno.tsv", rows))
    made = read_dataset(tmp_path / "out.h5").videos
    for key, title in (("video_1", "apple"), ("video_2", "video_2"), ("video_3", "zebra")):
        assert np.array_equal(made[key].user_scores, scores[title][:, :200])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a\tVT\t1,2,3\n", r"2 annotators of 200 frames \(or one more\) for video_1, got 1 of 3"),
        ("b\tVT\t1,2,3\n", r"no rows are titled a or video_1 \(video_1\); give the table of the same"),
        ("a\tVT\t1,2,300\n", "line 1: expected title, category and, joined by commas, whole numbers from 0 to 255"),
        ("a\tVT\t1,2\nb\tVT\tmany\n", "line 2: expected title, category and,"),
        ("hello\n", "line 1: expected title, category and,"),
        ("a.mp4\tVT\t1,2\na.mkv\tVT\t1,2\n", "no rows are titled a or video_1"),
        ("", "no rows are titled a"),
    ],
)
def test_annotations_of_other_videos_are_refused(
    write_video: WriteVideo, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "table.tsv").write_text(content)
    with pytest.raises(InputError, match=told):
        prepare(write_video(user_scores=None, video_name=b"a"), tmp_path / "out.h5", annotations=tmp_path / "table.tsv")
    assert not (tmp_path / "out.h5").exists()


def test_annotations_are_never_joined_by_position(write_video: WriteVideo, tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.tsv", [("AwmHb44_ouw", np.ones(200, int))] * 2)
    with pytest.raises(InputError, match=r"no rows are titled video_1 .*; .* store the video's title"):
        prepare(write_video(user_scores=None), tmp_path / "out.h5", annotations=table)


FIELDS = (
    "features", "gtscore", "picks", "n_frames", "n_steps",
    "change_points", "n_frame_per_seg", "user_summary", "user_scores",
)  # fmt: skip
BARE = dict.fromkeys(FIELDS)
"""The example without any of its fields."""
NOBODY = {"user_summary": None, "user_scores": None}


def test_a_file_of_ovp_has_picks_every_15_frames(write_video: WriteVideo, tmp_path: Path) -> None:
    path = write_video(**BARE | {"features": np.ones((60, 32)), "gtscore": np.ones(60), "gtsummary": np.zeros(60)})
    video = read_dataset(path).videos["video_1"]
    assert (video.n_frames, video.picks.tolist()) == (899, list(range(0, 886, 15)))
    assert read_dataset(path).select(["video_1"], need=("features", "gtscore"))
    added = prepare(path, tmp_path / "out.h5")
    assert added[:2] == [f"video_1/{name}: of 60 steps of 899 frames" for name in ("n_frames", "picks")]
    made = read_dataset(tmp_path / "out.h5").videos["video_1"]
    assert (made.n_frames, made.picks.tolist()) == (899, video.picks.tolist())


@pytest.mark.parametrize("end", [0, 1])
def test_a_file_of_mr_hisum_has_a_pick_every_frame(write_video: WriteVideo, end: int) -> None:
    ends = np.array([[0, 19 + end], [20, 49 + end], [50, 119 + end]])
    fields = {"features": np.ones((120, 8)), "gtscore": np.ones(120), "change_points": ends}
    video = read_dataset(write_video(**BARE | fields | {"gt_summary": np.arange(120) < 18})).videos["video_1"]
    assert (video.n_frames, video.picks.tolist()) == (120, list(range(120)))
    assert video.shots is not None
    assert video.shots.tolist() == [[0, 20], [20, 50], [50, 120]]
    assert video.user_summary is not None
    assert np.flatnonzero(video.user_summary).tolist() == list(range(18))


@pytest.mark.parametrize(
    ("changed", "n_frames", "picks"),
    [
        ({"n_frames": None}, 200, range(0, 200, 15)),
        ({"picks": None}, 200, range(0, 200, 15)),
        ({"picks": None, "n_frames": 14, "change_points": None} | NOBODY, 14, range(14)),
        ({"n_frames": None} | NOBODY, 200, range(0, 200, 15)),
        ({"n_frames": None, "change_points": None} | NOBODY, 196, range(0, 200, 15)),
    ],
)
def test_what_a_file_leaves_out_of_its_clock_is_told_by_the_rest(
    write_video: WriteVideo, changed: dict[str, Any], n_frames: int, picks: range
) -> None:
    video = read_dataset(write_video(**changed)).videos["video_1"]
    assert (video.n_frames, video.picks.tolist()) == (n_frames, list(picks))


def test_empty_arrays_of_matlab_are_no_values(write_video: WriteVideo, tmp_path: Path) -> None:
    path = write_video(user_scores=None)
    with h5py.File(path, "a") as file:
        for name in ("change_points", "user_summary", "n_frame_per_seg"):
            del file["video_1"][name]
            file["video_1"][name] = np.array([0, 0], dtype=np.uint64)
            file["video_1"][name].attrs["MATLAB_empty"] = np.uint8(1)
        file["video_1"]["user_scores"] = h5py.Empty("f4")
    video = read_dataset(path).videos["video_1"]
    assert (video.shots, video.user_summary, video.user_scores) == (None, None, None)
    prepare(path, tmp_path / "out.h5")
    assert read_dataset(tmp_path / "out.h5").videos["video_1"].shots is not None


def test_videos_in_other_files_keep_their_keys(write_video: WriteVideo, tmp_path: Path) -> None:
    """By soft and external links to groups and fields; a copy holds all of it."""
    with h5py.File(write_video().rename(tmp_path / "store.h5"), "a") as file:
        file.move("video_1", "clips/a")
        expected = file["clips/a/features"][()]
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "index.h5", "w") as file:
        file["video_7"] = h5py.ExternalLink("../store.h5", "/clips/a")
        file["video_8"] = h5py.SoftLink("/video_7")
        for name in FIELDS:
            file[f"video_9/{name}"] = h5py.ExternalLink("../store.h5", f"/clips/a/{name}")
    prepare(tmp_path / "in" / "index.h5", tmp_path / "out.h5")
    for path in (tmp_path / "in" / "index.h5", tmp_path / "out.h5"):
        videos = read_dataset(path).videos
        assert [(key, video.key) for key, video in videos.items()] == [(f"video_{n}",) * 2 for n in (7, 8, 9)]
        assert all(np.array_equal(video.features, expected) for video in videos.values())
        (tmp_path / "store.h5").rename(tmp_path / "moved.h5") if path.name == "index.h5" else None
    with pytest.raises(InputError, match=r"index\.h5: video_7: .* a link leads nowhere"):
        read_dataset(tmp_path / "in" / "index.h5")


def test_a_filter_that_is_not_installed_is_named(write_video: WriteVideo) -> None:
    path = write_video(features=None)
    with h5py.File(path, "a") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((14, 16))
        plan.set_filter(32099, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((14, 16))
        features = h5py.h5d.create(file["video_1"].id, b"features", h5py.h5t.IEEE_F32LE, space, plan)
        features.write_direct_chunk((0, 0), bytes(14 * 16 * 4))
    with pytest.raises(
        InputError, match=r"video_1/features: compressed by a filter \(HDF5 filter 32099\), which .*: pip"
    ):
        read_dataset(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features", (14, 1 << 30)),
        ("user_summary", (1 << 24, 200)),
        ("picks", (1 << 32,)),
        ("change_points", (1 << 32, 2)),
    ],
)
def test_what_a_file_claims_is_weighed_before_it_is_read(
    write_video: WriteVideo, name: str, shape: tuple[int, ...]
) -> None:
    path = write_video(**{name: None})
    with h5py.File(path, "a") as file:
        file["video_1"].create_dataset(name, shape, dtype="i8", chunks=True)
    with pytest.raises(InputError, match=rf"one\.h5: video_1/{name}: claims \d+ bytes, of which the file holds 0"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_frames", np.nan),
        ("n_frames", np.inf),
        ("n_frames", 2.0**63),
        ("n_frames", np.uint64(2**64 - 1)),
        ("n_frames", 2**40),
        ("picks", np.array([0, 2**62, -(2**62)])),
        ("gtscore", np.full(14, 1e300)),
        ("features", np.ones((14, 16), complex)),
        ("change_points", np.full((2, 2), 2**63 - 1)),
        ("change_points", b"none"),
    ],
)
def test_numbers_beyond_reason_are_refused(write_video: WriteVideo, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^one\.h5: video_1/{field}: expected "):
        read_dataset(write_video(**{field: value}))


def test_a_damaged_file_is_read_or_refused_by_name(write_video: WriteVideo, tmp_path: Path) -> None:
    """Bytes changed, bits turned, ends cut off: nothing but InputError, which names the file."""
    whole = write_video().read_bytes()
    draw = np.random.default_rng(5)
    refusals = []
    for number in range(300):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(draw.integers(1, len(data)))]
        else:
            for place in draw.integers(0, len(data), int(draw.integers(1, 30))):
                data[place] = int(draw.integers(256)) if number % 3 == 1 else data[place] ^ (1 << int(draw.integers(8)))
        path = tmp_path / "damaged.h5"
        path.write_bytes(data)
        try:
            read_dataset(path)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all("damaged.h5" in refusal for refusal in refusals)


def test_prepare_never_overwrites_its_source(write_video: WriteVideo, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video()
    before = path.read_bytes()
    assert main(["prepare", str(path), str(path)]) == 2
    assert "is read, so it cannot be written too" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_prepare_that_fails_leaves_no_file(
    eight_videos: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vsum_runtime.training.datasets.preparation._write_shots", full_disk)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(VsumError, match="No space left on device"):
        prepare(eight_videos[0], tmp_path / "out.h5")
    assert sorted(tmp_path.iterdir()) == files


def test_the_door_of_prepare(eight_videos: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    target = eight_videos[0].with_name("out.h5")
    assert main(["prepare", str(eight_videos[0]), str(target)]) == 0
    assert f"wrote {target}" in capsys.readouterr().out
    assert main(["prepare", str(target.with_name("none.h5")), str(target)]) == 2
    assert "none.h5" in capsys.readouterr().err


def test_real_labels_meet_every_invariant(real_data: Path) -> None:
    summe = read_dataset(real_data / "summe_labels.h5", features="features_efflite0")
    assert len(summe.videos) == 25
    assert sum(video.features is not None for video in summe.videos.values()) == 3
    assert summe.videos["video_1"].n_frames == 4494
    for name in ("summe_certh", "summe_partition"):
        splits = read_splits(real_data / "splits" / f"{name}.json", summe)
        assert [(len(split.train_keys), len(split.test_keys)) for split in splits.splits] == [(20, 5)] * 5
