"""How near is every model to its authors' outputs, to itself in a padded batch, and to its exported graph?

    python -m benchmarks.parity

measures each model of the table at its published size and writes ``training/models/measured.json``, which
``vsum-models`` lists; ``python -m benchmarks.pages`` writes the table of ``docs/models.md``. ``--models csta vasnet``
measures these again and keeps the others. Differences are the largest absolute ones of any output, relative above 1.

- golden: against outputs of the authors' code, all public cases of the default options. They are looked for in
  ``golden/`` of the folder that VSUM_REFERENCE names; without them this stays empty;
- losses: do the tests that compare losses and gradients with the authors' pass;
- training: does the test pass in which a few epochs on real features improve the model's own objective, and a run that
  was stopped ends in the same bits;
- ragged: a batch of 1 to 320 steps, random values in its padding, against each video alone;
- onnx: the gate of ``vsum-export``, ONNX Runtime on the CPU against PyTorch, 1 to 3000 steps; against PyTorch in double
  precision where single precision cannot tell;
- cost: multiplications and additions of one video of 320 steps, counted as it runs; recurrent layers by their formula.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.rows import ROOT, this_run
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.export.parity import check_scorer, largest_difference
from vsum_runtime.runtime.atomic import replacing
from vsum_runtime.runtime.errors import ExportError
from vsum_runtime.training.catalogue import MEASURED
from vsum_runtime.training.models import MODELS, build, load_reference_state_dict
from vsum_runtime.training.procedures import RECIPES

GOLDEN_NAMES = {"vslud": "vslud_sk", "fcsn": "fcsn1d"}
LENGTHS = (1, 2, 7, 60, 193, 320)
SMOKE = "test_every_system_learns_from_real_features_and_resumes_to_the_same_bits"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("VSUM_REFERENCE", ROOT.parent / "shared")) / "golden"
    if not (folder / "fill.py").exists():
        print(f"no {folder}: the columns golden and losses stay empty; set VSUM_REFERENCE", file=sys.stderr)
    for name in args.models:
        row = measure(name, folder if (folder / "fill.py").exists() else None)
        _save({**json.loads(MEASURED.read_text()), name: row})
        print(name, json.dumps(row), flush=True)
    return 0


def _save(rows: dict[str, Any]) -> None:
    with replacing(MEASURED) as temporary:
        Path(temporary).write_text(json.dumps({name: rows[name] for name in MODELS if name in rows}, indent=1) + "\n")


def _described(model: torch.nn.Module) -> dict[str, Any]:
    return {
        **model.card._asdict(),  # type: ignore[operator, union-attr]
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflop_at_320": round(_flops(model.eval(), 320) / 1e9, 2),
    }


def measure(name: str, golden: Path | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(name).eval()
    described = _described(model)
    golden_difference, within = (None, None) if golden is None else _golden(name, model, golden)
    return {
        **described,
        "golden": golden_difference,
        "golden_within_tolerance": within,
        "losses": None if golden is None else _losses_pass(name),
        "training": _tests_pass([f"tests/training/test_smoke.py::{SMOKE}[{name}]"]) if name in RECIPES else None,
        "ragged": _ragged(model),
        **_exported(model),
        "run": asdict(this_run("python -m benchmarks.parity", ("torch", "onnxruntime"))),
    }


def _golden(name: str, model: torch.nn.Module, folder: Path) -> tuple[float | None, bool | None]:
    """Fill the model with the weights of the authors' cases: largest difference; is all within the file's tolerance?"""
    file = folder / f"{GOLDEN_NAMES.get(name, name)}.json"
    if not file.exists():
        return None, None
    spec = spec_from_file_location("golden_fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    fill = module_from_spec(spec)
    spec.loader.exec_module(fill)
    case_file = json.loads(file.read_text())
    salt, layout = case_file["salt"], case_file["state_dict"]
    weights = fill.state_dict(layout, salt)
    for pattern, factor in case_file["overrides"].items():
        for key in weights:
            if re.fullmatch(pattern, key):
                weights[key] = (weights[key] * np.float32(factor)).astype(np.float32)
    load_reference_state_dict(model, weights)
    worst, within = 0.0, True
    with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
        for case in [*case_file["cases"], *case_file.get("extension_cases", ())]:
            if "config" in case and case["config"] != "ts_c":  # the configuration that `build` makes by default
                continue
            n_steps = case["n_steps"]
            outputs = _run(model, torch.from_numpy(fill.features(n_steps, 1024, salt))[None], [n_steps])
            for output, scores in outputs.items():
                place = case["outputs"][output]["array"] if "outputs" in case else f"{case['name']}/frame_score"
                expected = arrays[place].reshape(scores[0].shape)
                worst = max(worst, _difference(scores[0], expected))
                within = within and np.allclose(scores[0], expected, **_tolerance(case_file["tolerance"], output))
    return worst, within


def _tolerance(stated: dict[str, Any], output: str) -> dict[str, float]:
    if output in stated:
        return {"rtol": 0.0, "atol": 0.0, **stated[output]}
    return {"rtol": stated["frame_score_rtol"], "atol": stated["frame_score_atol"]}


def _losses_pass(name: str) -> bool | None:
    files = [f"tests/training/test_{stem}.py" for stem in {name, name.split("_a")[0] if "dsnet" in name else name}]
    files = [file for path in files for file in (path, path.replace("training/", "training/procedures/"))]
    files = [file for file in files if (ROOT / file).exists()]
    return _tests_pass(["-k", "authors and (loss or reward)", *files]) if files else None


def _tests_pass(chosen: list[str]) -> bool | None:
    """None where there is no such test, or all of them skip."""
    command = [sys.executable, "-m", "pytest", "-q", "-rN", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    none = done.returncode in (4, 5) or " passed" not in done.stdout
    return None if done.returncode in (0, 4, 5) and none else done.returncode == 0


def _ragged(model: torch.nn.Module) -> float:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(0, 3, (len(LENGTHS), max(LENGTHS), 1024)).astype(np.float32))
    for video, n_steps in enumerate(LENGTHS):
        rows = rng.gamma(0.5, size=(n_steps, 1024))
        features[video, :n_steps] = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    together, worst = _run(model, features, LENGTHS), 0.0
    for video, n_steps in enumerate(LENGTHS):
        for output, alone in _run(model, features[video : video + 1, :n_steps], [n_steps]).items():
            worst = max(worst, _difference(together[output][video, :n_steps], alone[0]))
    return worst


def _exported(model: torch.nn.Module) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        graph, path = ScorerGraph(model, "l2").eval(), Path(folder) / "scorer.onnx"
        try:
            scorer_onnx(graph, 1024, path)
            worst = largest_difference(check_scorer(path, graph, 1024))
        except ExportError as error:
            logging.warning("%s", error)
            return {"onnx": None, "onnx_bytes": None}
        return {"onnx": worst, "onnx_bytes": path.stat().st_size}


def _run(model: torch.nn.Module, features: torch.Tensor, lengths: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = model(features, torch.tensor(lengths))
    return (
        {"scores": outputs.numpy()}
        if torch.is_tensor(outputs)
        else {k: v.numpy() for k, v in outputs._asdict().items()}
    )


def _difference(values: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(values - expected) / np.maximum(1.0, np.abs(expected))).max())


def _flops(model: torch.nn.Module, n_steps: int) -> int:
    lstms = [layer for layer in model.modules() if isinstance(layer, torch.nn.LSTM)]
    with FlopCounterMode(display=False) as counter:
        _run(model, torch.rand(1, n_steps, 1024), [n_steps])
    recurrent = sum(8 * n_steps * layer.hidden_size * (layer.input_size + layer.hidden_size) for layer in lstms)
    return counter.get_total_flops() + recurrent


if __name__ == "__main__":
    sys.exit(main())
