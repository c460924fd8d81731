"""The model that ships with the package: small, true to its own record, and the whole path on a real film."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vsum_runtime.runtime import Summarizer, bundle
from vsum_runtime.runtime.backends import open_session
from vsum_runtime.runtime.cli import summarize as cli
from vsum_runtime.runtime.extractor import preprocess
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.runtime.recipe import Recipe

MAX_BYTES = 30_000_000


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    script = Path(__file__).parents[2] / "examples" / "make_demo_video.py"
    subprocess.run([sys.executable, str(script), str(path)], check=True, capture_output=True)
    return path


def test_default_bundle_is_small() -> None:
    assert sum(file.stat().st_size for file in DEFAULT_BUNDLE.iterdir()) <= MAX_BYTES


def test_default_bundle_gives_the_scores_it_recorded() -> None:
    with Summarizer() as summarizer:
        example = summarizer.bundle.manifest["example"]
        features, lengths = bundle.example_features(summarizer.bundle.feature_dim, example["lengths"])
        found = summarizer.score([features[b, :n] for b, n in enumerate(lengths)])
    for scores, recorded in zip(found, example["scores"], strict=True):
        np.testing.assert_allclose(scores, recorded, atol=1e-5)


def test_feature_network_reproduces_the_training_features(real_data: Path) -> None:
    """Pictures and features of the file the default model was trained on."""
    with Summarizer() as summarizer:
        recipe = Recipe.from_dict(summarizer.bundle.recipe)  # type: ignore[arg-type]
        session = open_session(DEFAULT_BUNDLE / recipe.network, "ort-cpu")
    with np.load(real_data / "backbone_check.npz") as check:
        found = session.run({"images": preprocess(check["images"], recipe)})[0]
        np.testing.assert_allclose(found, check["features"], atol=1e-3)


def test_film_becomes_a_summary_within_its_budget(film: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    out = {name: tmp_path / f"summary.{name}" for name in ("mp4", "json", "png")}
    argv = [str(film), "-o", str(out["mp4"]), "--json", str(out["json"]), "--plot", str(out["png"])]
    assert cli.main(argv) == 0
    record = json.loads(out["json"].read_text())
    assert 0 < record["duration_s"] <= 0.15 * record["source_duration_s"] + 1e-9
    with av.open(str(out["mp4"])) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == record["summary_frames"]
    with av.open(str(out["mp4"])) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples / container.streams.audio[0].rate == pytest.approx(record["duration_s"], abs=0.1)
    assert out["png"].read_bytes().startswith(b"\x89PNG")


def test_seconds_of_budget_are_kept(film: Path) -> None:
    with Summarizer() as summarizer:
        summary = summarizer.summarize(film, budget="10s")
    assert 5 < summary.duration_s <= 10
    assert summary.frames.sum() == (summary.ranges[:, 1] - summary.ranges[:, 0]).sum()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--budget", "0"], 2, "budget: expected"),
        (["--budget", "much"], 2, "budget: expected"),
        (["-o", "summary.txt"], 2, "ending in .mp4"),
        (["-o", "nowhere/summary.mp4"], 2, "make it first"),
        (["--threads", "0"], 2, "--threads: expected a whole number, 1 or more"),
        (["--backend", "tpu"], 2, "ort-cpu"),
        (["--bundle", "."], 1, "vsum-export"),
    ],
)
def test_wrong_argument_is_one_line_and_a_code(
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(film), "-o", "summary.mp4", *change]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vsum-summarize: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "content"), [("missing.mp4", None), ("empty.mp4", b""), ("text.mp4", b"not a film")])
def test_file_that_is_no_video_is_one_line_and_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None
) -> None:
    video = tmp_path / name
    if content is not None:
        video.write_bytes(content)
    assert cli.main([str(video), "-o", str(tmp_path / "summary.mp4")]) == 1
    assert name in capsys.readouterr().err
    assert not (tmp_path / "summary.mp4").exists()


def test_a_film_is_not_overwritten_by_its_summary(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = film.read_bytes()
    assert cli.main([str(film), "-o", str(film)]) == 2
    assert "is read, so it cannot be written too" in capsys.readouterr().err
    assert film.read_bytes() == before
