"""vsum-models tells what was measured, of every model, and the page of the models describes each."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from vsum_runtime.training.catalogue import CHECKS, MEASURED, main, verdict
from vsum_runtime.training.models import MODELS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()


def test_every_model_is_listed_as_its_own_file_describes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(MODELS)
    for name, place in MODELS.items():
        module, _, class_name = place.partition(":")
        card = getattr(import_module(module), class_name).card._asdict()
        assert {key: listed[name][key] for key in card} == card


def test_the_table_has_a_line_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(MODELS)]] == list(MODELS)


def test_a_model_that_nobody_has_measured_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "new", MODELS["vasnet"])
    assert main([]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("new "))
    assert "VASNet" in line
    assert line.count(" - ") >= len(CHECKS)


def test_a_check_passes_by_what_was_measured_alone() -> None:
    row = {"golden": 0.5, "golden_within_tolerance": False, "losses": None, "ragged": 1e-6, "onnx": 2e-5}
    assert [verdict(row, check) for check in ("golden", "losses", "ragged", "onnx")] == [False, None, True, False]


def test_the_page_has_a_section_for_each_model_that_was_measured() -> None:
    sections = {line[3:] for line in PAGE.splitlines() if line.startswith("## ")}
    assert sections >= json.loads(MEASURED.read_text()).keys()


def test_help_loads_no_torch() -> None:
    code = "import sys, training.catalogue; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
