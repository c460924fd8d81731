"""A package whose release we do not support is named, with the range and the command that helps; never a traceback."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from vsum_runtime.runtime import releases
from vsum_runtime.runtime.backends import backend
from vsum_runtime.runtime.cli import backends as list_backends
from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import VideoError
from vsum_runtime.runtime.releases import unsupported, why_unsupported

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that is right in all but onnxruntime, which is of a release that normalizes wrongly."""
    ranges = {"onnxruntime": ">=1.30", "av": ">=15,<20,!=17.1.*,!=18.*"}
    stated = [f'{name}{found}; extra == "cpu"' for name, found in ranges.items()]
    monkeypatch.setattr(metadata, "requires", lambda name: [*stated, 'gone>=9; python_version < "3"'])
    installed, version = {"onnxruntime": "1.26.0", "av": "17.0.1"}, metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: installed.get(name) or version(name))
    releases._requirements.cache_clear()
    yield
    releases._requirements.cache_clear()


@pytest.mark.usefixtures("old_onnxruntime")
def test_an_old_release_is_named_with_the_range_and_the_cure() -> None:
    expected = 'onnxruntime 1.26.0 is installed, vsum-runtime supports >=1.30: pip install "onnxruntime>=1.30"'
    assert why_unsupported("onnxruntime") == expected
    assert why_unsupported("av") is None
    assert unsupported() == [expected]


@pytest.mark.usefixtures("old_onnxruntime")
def test_the_backend_refuses_it_and_the_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert "1.26.0 is installed" in str(backend("ort-cpu").why_absent())
    assert list_backends.main([]) == 0
    assert re.search(r"^ort-cpu +absent: onnxruntime 1\.26\.0 is installed", capsys.readouterr().out, re.M)


@pytest.mark.usefixtures("old_onnxruntime")
def test_what_such_a_release_breaks_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise AttributeError("module has no attribute 'new'")

    assert door.end("vsum-x", broken, extra="cpu") == door.FAILED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("vsum-x: module has no attribute 'new'; onnxruntime 1.26.0 is installed")


def test_a_release_of_pyav_that_may_abort_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    decode = pytest.importorskip("vsum_runtime.runtime.media.decode")
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "18.1.0" if name == "av" else version(name))
    decode._warn_of_other_releases.cache_clear()
    for _ in range(2):
        with pytest.raises(VideoError, match="nothing there"):
            decode.open_container(tmp_path / "film.mp4")
    decode._warn_of_other_releases.cache_clear()
    assert len(caplog.messages) == 1
    assert re.match(r"av 18\.1\.0 is installed, vsum-runtime supports .*: pip install \"av", caplog.messages[0])


def test_locks_hold_no_cuda_and_every_entry_has_a_hash() -> None:
    """torch is not in them: of one release the CPU build and that for CUDA have different hashes."""
    for lock in ("demo", "test", "bench", "serve"):
        text = (REPOSITORY / f"locks/{lock}.txt").read_text()
        entries = re.findall(r"^([a-z0-9_.-]+)==(?:.*\\\n)(?=    --hash=sha256:)", text, re.M)
        assert len(entries) == len(re.findall(r"^[a-z0-9_.-]+==", text, re.M)) > 10
        assert not [name for name in entries if name == "torch" or name.startswith("nvidia-")]


def test_locks_agree_with_the_ranges() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    ranges = [requirement for text in listed if not (requirement := requirements.Requirement(text)).extras]
    for lock in ("demo", "test", "bench", "serve"):
        text = (REPOSITORY / f"locks/{lock}.txt").read_text()
        for name, release in re.findall(r"^([a-z0-9_.-]+)==([^ ;]+)", text, re.M):
            for requirement in ranges:
                assert requirement.name != name or requirement.specifier.contains(release), (lock, name, release)
