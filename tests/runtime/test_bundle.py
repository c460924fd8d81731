"""Bundles are whole or absent, and what was cut, altered or forged is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime import bundle as bundles
from vsum_runtime.runtime.atomic import replacing_folder
from vsum_runtime.runtime.errors import BundleError

MANIFEST: dict[str, Any] = {
    "model": {"architecture": "toy", "options": {}, "feature_dim": 4, "output": "scores"},
    "graph": {"file": "scorer.onnx", "precision": "fp32"},
    "features": None,
    "example": {"lengths": [2], "scores": [[0.5, 0.5]]},
}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    file = tmp_path / "graph"
    file.write_bytes(b"not really a graph")
    return file


@pytest.fixture
def bundle(tmp_path: Path, graph: Path) -> Path:
    return bundles.write(tmp_path / "toy", MANIFEST, {"scorer.onnx": graph}).path


def test_written_bundle_reads_back(bundle: Path) -> None:
    found = bundles.read(bundle)
    assert (found.name, found.feature_dim, found.recipe, found.example_lengths) == ("toy", 4, None, [2])
    assert found.graph.read_bytes() == b"not really a graph"


def test_bundles_of_version_1_are_still_read(bundle: Path) -> None:
    _edit(bundle, lambda m: m.update(version=1))
    assert bundles.read(bundle).decoder is None


def test_write_replaces_an_older_bundle_and_leaves_nothing_else(bundle: Path, graph: Path) -> None:
    graph.write_bytes(b"second")
    bundles.write(bundle, MANIFEST, {"scorer.onnx": graph})
    assert bundles.read(bundle).graph.read_bytes() == b"second"
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["graph", "toy"]


def test_a_reader_finds_a_whole_bundle_at_any_moment(bundle: Path, graph: Path) -> None:
    stop, contents = Event(), []

    def read_on() -> int:
        count = 0
        while not stop.is_set():
            assert (bundle / bundles.MANIFEST).exists()
            contents.append(bundles.read(bundle).manifest.get("training"))
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on)
        for epoch in range(60):
            graph.write_bytes(bytes(100 + epoch))
            bundles.write(bundle, {**MANIFEST, "training": {"epoch": epoch}}, {"scorer.onnx": graph})
        stop.set()
        assert reading.result() > 0
    assert any(entry is not None for entry in contents)
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["graph", "toy"]


def test_what_a_killed_writer_left_goes_with_the_next_and_what_one_holds_stays(bundle: Path, graph: Path) -> None:
    left = bundle.parent / ".toy-abandoned.tmp"
    left.mkdir()
    (left / "scorer.onnx").write_bytes(b"half")
    with replacing_folder(bundle) as held:
        bundles.write(bundle, MANIFEST, {"scorer.onnx": graph})
        assert held.exists()
        assert not left.exists()
        (held / "manifest.json").write_text("{}")
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["graph", "toy"]


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(bundle: Path, graph: Path) -> None:
    link = bundle.with_name("latest")
    link.symlink_to(bundle, target_is_directory=True)
    graph.write_bytes(b"second")
    bundles.write(link, MANIFEST, {"scorer.onnx": graph})
    assert link.is_symlink()
    assert bundles.read(bundle).graph.read_bytes() == b"second"


def test_write_refuses_to_replace_a_folder_that_is_no_bundle(tmp_path: Path, graph: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="not a bundle"):
        bundles.write(tmp_path / "photos", MANIFEST, {"scorer.onnx": graph})
    assert (tmp_path / "photos" / "mine.jpg").exists()


def test_failed_write_leaves_nothing(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(BundleError, match="No space left on device"):
        bundles.write(tmp_path / "toy", MANIFEST, {"scorer.onnx": graph})
    assert [p.name for p in tmp_path.iterdir()] == ["graph"]


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / bundles.MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "manifest.json").unlink(), "found none; make one with vsum-export"),
        (lambda b: (b / "manifest.json").write_text("{"), "expected JSON"),
        (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe{}"), "expected JSON"),
        (lambda b: (b / "manifest.json").write_text("[]"), "not a bundle of this project"),
        (lambda b: (b / "manifest.json").write_text(" " * 2_000_000), "at most 1048576 bytes"),
        (lambda b: (b / "scorer.onnx").unlink(), "'scorer.onnx' is missing"),
        (lambda b: (b / "scorer.onnx").write_bytes(b"not really"), "cut or altered"),
        (lambda b: (b / "scorer.onnx").write_bytes(b"NOT really a graph"), "the file was altered"),
        (lambda b: _edit(b, lambda m: m.update(version=3)), "expected version 1 or 2, got 3"),
        (lambda b: _edit(b, lambda m: m["model"].update(output="clips")), "expected scores, or proposals with"),
        (lambda b: _edit(b, lambda m: m["model"].update(output="proposals")), "got 'proposals' with None"),
        (
            lambda b: _edit(b, lambda m: m.update(decoder={"a": 1})),
            "got 'scores' with {'a': 1}",
        ),
        (
            lambda b: _edit(b, lambda m: (m["model"].update(output="proposals"), m.update(decoder={}))),
            "decoder.anchor_widths: expected a list",
        ),
        (lambda b: _edit(b, lambda m: m.pop("graph")), "entry graph is missing"),
        (lambda b: _edit(b, lambda m: m["model"].pop("feature_dim")), "model.feature_dim is missing"),
        (lambda b: _edit(b, lambda m: m.update(files={})), "without a checksum"),
        (lambda b: _edit(b, lambda m: m["files"].update({"../graph": {}})), "a part is a plain file name"),
        (lambda b: _edit(b, lambda m: m["files"].update({"scorer.onnx": 3})), "cut or altered"),
        (lambda b: _edit(b, lambda m: m.update(features={"network": "other.onnx"})), "'other.onnx' without a checksum"),
        (
            lambda b: _edit(b, lambda m: m.update(features={"network": "scorer.onnx"})),
            "features: recipe: expected the keys",
        ),
        (lambda b: _edit(b, lambda m: m.update(features={"network": ["a"]})), "features.network: expected a file name"),
        (lambda b: _edit(b, lambda m: m["graph"].update(file=["scorer.onnx"])), "graph.file: expected a file name"),
        (lambda b: _edit(b, lambda m: m["graph"].update(long=[1])), "graph.long: expected an object"),
        (
            lambda b: _edit(b, lambda m: m["graph"].update(long={"file": "scorer.onnx", "above_steps": "9"})),
            "above_steps",
        ),
        (
            lambda b: _edit(b, lambda m: m["graph"].update(memory_bytes=[1, None, 2])),
            "memory_bytes: expected three numbers",
        ),
        (lambda b: _edit(b, lambda m: m["graph"].update(batch_tokens="many")), "batch_tokens: expected a whole number"),
        (lambda b: _edit(b, lambda m: m["graph"].update(precision="fp64")), "precision: expected fp32 or int8"),
        (lambda b: _edit(b, lambda m: m.update(half="scorer.onnx")), "half: expected an object"),
        (lambda b: _edit(b, lambda m: m["model"].update(feature_dim="four")), "feature_dim: expected a number of"),
        (lambda b: _edit(b, lambda m: m["model"].update(feature_dim=-1)), "feature_dim: expected a number of"),
        (lambda b: _edit(b, lambda m: m["model"].update(feature_dim=10**400)), "feature_dim: expected a number of"),
        (lambda b: _edit(b, lambda m: m["model"].update(architecture=None)), "architecture: expected a name"),
        (lambda b: _edit(b, lambda m: m["example"].update(lengths=2)), "example.lengths: expected a list"),
        (lambda b: _edit(b, lambda m: m["example"].update(lengths=[10**9])), "example.lengths: expected a list"),
        (lambda b: _edit(b, lambda m: m["example"].update(scores=[[1, "x"]])), "example.scores: expected a list"),
        (lambda b: _edit(b, lambda m: m["example"].pop("scores")), "example.scores is missing"),
        (lambda b: _edit(b, lambda m: m["files"].update({"a\0b": {}})), "a part is a plain file name"),
        (lambda b: _edit(b, lambda m: m["files"].update({"x" * 300: {}})), "is missing"),
        (lambda b: (b / "manifest.json").write_text('{"a":' * 100_000), "expected JSON"),
    ],
)
def test_damaged_bundle_is_refused(bundle: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        bundles.read(bundle)


def test_part_that_is_a_link_out_of_the_bundle_is_refused(bundle: Path, graph: Path) -> None:
    (bundle / "scorer.onnx").unlink()
    os.symlink(graph, bundle / "scorer.onnx")
    with pytest.raises(BundleError, match="is missing"):
        bundles.read(bundle)


def test_example_features_are_unit_rows_with_zero_padding() -> None:
    features, lengths = bundles.example_features(16, [5, 2])
    assert features.dtype == np.float32
    assert lengths.tolist() == [5, 2]
    assert np.allclose(np.linalg.norm(features[0], axis=1), 1)
    assert not features[1, 2:].any()
