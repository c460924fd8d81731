"""Engines built on a CPU by TensorRT-RTX with the profiles we ship, and the cache that keeps engines."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from benchmarks.gpu.graphs import DIM, export, paths
from vsum_runtime.export import cli
from vsum_runtime.export.engine_from_onnx import BuildConfig, Built, build_engine, cached_engine, load_library
from vsum_runtime.export.half_precision import half_precision, islands_of
from vsum_runtime.export.onnx_from_torch import ScorerGraph, scorer_onnx
from vsum_runtime.runtime.backends.tensorrt import engine_cache
from vsum_runtime.runtime.backends.tensorrt.engine_cache import Target
from vsum_runtime.runtime.backends.tensorrt.profiles import PROFILES, Profile
from vsum_runtime.runtime.errors import BackendError, ExportError
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE
from vsum_runtime.training import models

D = 64
HERE = Target("tensorrt", "11.4.0", "NVIDIA H100", "9.0", 13000)
FOR_ADA = BuildConfig(compute_capabilities=("8.9",))


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        library = load_library("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))
    logging.getLogger(__name__).info("TensorRT-RTX %s", library.__version__)
    return library


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    scorer_onnx(ScorerGraph(models.build("ca_sum", feature_dim=D), "l2"), D, folder / "fp32.onnx")
    model = onnx.load(folder / "fp32.onnx")
    onnx.save(half_precision(model, []), folder / "fp16.onnx")
    onnx.save(half_precision(model, [name for name in islands_of(model) if "attention" in name]), folder / "mixed.onnx")
    return {precision: folder / f"{precision}.onnx" for precision in ("fp32", "fp16", "mixed")}


@pytest.mark.trt_build
def test_every_precision_builds_with_the_shipped_profiles_in_the_types_of_its_graph(
    rtx: Any, graphs: dict[str, Path]
) -> None:
    built = {precision: build_engine(graph, FOR_ADA, rtx) for precision, graph in graphs.items()}
    n_products = built["fp32"].products["FLOAT"]
    assert built["fp32"].products == {"FLOAT": n_products}
    assert built["fp16"].products == {"HALF": n_products - 1, "FLOAT": 1}  # the last product stays in float32
    assert set(built["mixed"].products) == {"FLOAT", "HALF"}
    for engine in built.values():
        assert len(engine.memory_bytes) == len(PROFILES)
        assert 0 < max(engine.memory_bytes) < 8e9
        logging.getLogger(__name__).info("%s bytes of memory, %d of plan", engine.memory_bytes, len(engine.plan))


@pytest.mark.slow
@pytest.mark.trt_build
@pytest.mark.skipif("VSUM_FULL_SIZE" not in os.environ, reason="takes many minutes; set VSUM_FULL_SIZE=1")
@pytest.mark.parametrize("name", list(models.MODELS))
def test_every_model_builds_at_full_size_in_both_precisions(rtx: Any, tmp_path: Path, name: str) -> None:
    assert export(name, DIM, tmp_path) == ""
    single, half = (build_engine(graph, FOR_ADA, rtx) for graph in paths(tmp_path, name, DIM))
    assert set(single.products) == {"FLOAT"}
    assert ("HALF" in half.products) == (name != "dsnet_ab")  # whose islands on record hold every product
    assert sum(half.products.values()) == sum(single.products.values())
    for engine in (single, half):
        assert len(engine.memory_bytes) == len(PROFILES)
        assert 0 < max(engine.memory_bytes) < 8e9
    logging.getLogger(__name__).info("%s: %s and %s bytes", name, single.memory_bytes, half.memory_bytes)


@pytest.mark.trt_build
def test_build_tells_its_progress_and_can_be_cancelled(rtx: Any, graphs: dict[str, Path]) -> None:
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(ExportError, match="cancelled; nothing was written"):
        build_engine(
            graphs["fp32"], FOR_ADA, rtx, progress=lambda *step: steps.append(step), cancelled=lambda: len(steps) > 3
        )
    assert steps
    assert all(0 <= step <= n_steps for _, step, n_steps in steps)


@pytest.mark.trt_build
def test_graph_that_does_not_parse_is_told_with_the_reason(rtx: Any, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", "time", D])
    out = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.INT64, [3, "n"])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NotAnOperator", ["features"], ["scores"])], "g", [value], [out]
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=9), tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match=r"odd\.onnx: .* cannot parse it: .*Plugin not found"):
        build_engine(tmp_path / "odd.onnx", FOR_ADA, rtx)


@pytest.mark.trt_build
def test_gpu_the_library_does_not_know_is_refused(rtx: Any, graphs: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match=r"compute capability 9\.0: .* has no such"):
        build_engine(graphs["fp32"], BuildConfig(compute_capabilities=("9.0",)), rtx)


def test_absent_library_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr("vsum_runtime.export.engine_from_onnx.import_module", absent)
    with pytest.raises(BackendError, match=r'no tensorrt_bindings.*pip install "vsum-runtime\[tensorrt\]"'):
        load_library("tensorrt")


def stored(folder: Path, *, target: Target = HERE, passed: bool = True, hardware_compatible: bool = False) -> Path:
    """An engine in a cache; its plan is no plan, the cache does not look inside."""
    name = engine_cache.key("a" * 64, target, "fp16", PROFILES, {})
    record = {
        "target": vars(target),
        "profiles": [vars(profile) for profile in PROFILES],
        "hardware_compatible": hardware_compatible,
        "parity": {"passed": passed},
    }
    return engine_cache.write(folder, "a" * 64, name, b"plan" * 100, record)


def test_engine_of_this_machine_is_found_with_its_profiles(tmp_path: Path) -> None:
    stored(tmp_path, target=Target("tensorrt", "11.3.0", "NVIDIA H100", "9.0", 13000))
    stored(tmp_path)
    found = engine_cache.find(tmp_path, "a" * 64, HERE, "rebuild")
    assert found.plan == b"plan" * 100
    assert found.profiles == PROFILES
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("library_version", "11.5.0"),
        ("gpu", "NVIDIA A100"),
        ("compute_capability", "8.0"),
        ("driver", 12080),
    ],
)
def test_engine_of_another_machine_is_refused_with_the_difference(tmp_path: Path, entry: str, value: Any) -> None:
    stored(tmp_path, target=Target(**{**vars(HERE), entry: value}))
    with pytest.raises(BackendError, match=f"another machine .{entry} {value}, here .*vsum-export --bundle x"):
        engine_cache.find(tmp_path, "a" * 64, HERE, "vsum-export --bundle x")


def test_hardware_compatible_engine_serves_other_gpus_from_ampere_on(tmp_path: Path) -> None:
    stored(tmp_path, target=Target("tensorrt", "11.4.0", "NVIDIA A100", "8.0", 13000), hardware_compatible=True)
    assert engine_cache.find(tmp_path, "a" * 64, HERE, "rebuild").plan
    with pytest.raises(BackendError, match="another machine"):
        engine_cache.find(tmp_path, "a" * 64, Target("tensorrt", "11.4.0", "NVIDIA T4", "7.5", 13000), "rebuild")


def altered(place: Path) -> None:
    (place / "engine.plan").write_bytes(b"PLAN" * 100)


def truncated(place: Path) -> None:
    (place / "engine.plan").write_bytes(b"plan" * 99)


def gone(place: Path) -> None:
    (place / "engine.plan").unlink()


def open_to_all(place: Path) -> None:
    (place / "engine.plan").chmod(0o666)


def linked(place: Path) -> None:
    (place / "engine.plan").rename(place / "elsewhere")
    (place / "engine.plan").symlink_to(place / "elsewhere")


def garbled(place: Path) -> None:
    (place / "engine.json").write_text('{"target": 3}')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (altered, "cut or altered and is not loaded"),
        (truncated, "expected 400 bytes .* got 396"),
        (gone, "part of the engine is missing"),
        (open_to_all, "others may have written it"),
        (linked, "part of the engine is missing"),
        (garbled, "expected the record of an engine"),
    ],
)
def test_harmed_engine_is_refused_with_the_command_that_rebuilds_it(tmp_path: Path, harm: Any, message: str) -> None:
    harm(stored(tmp_path))
    with pytest.raises(BackendError, match=rf"{message}.*vsum-export --bundle x"):
        engine_cache.find(tmp_path, "a" * 64, HERE, "vsum-export --bundle x")


def test_engine_that_has_not_passed_the_gate_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, passed=False)
    with pytest.raises(BackendError, match="has not passed the parity gate"):
        engine_cache.find(tmp_path, "a" * 64, HERE, "rebuild")


def test_no_engine_names_the_command_that_builds_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no engine of this model has been built here.*vsum-export"):
        engine_cache.find(tmp_path, "a" * 64, HERE, "vsum-export --bundle x --engine tensorrt")


def test_key_changes_with_everything_that_shapes_an_engine() -> None:
    one = Profile((1, 1), (1, 2))
    keys = {
        engine_cache.key("a", HERE, "fp16", PROFILES, {}),
        engine_cache.key("b", HERE, "fp16", PROFILES, {}),
        engine_cache.key("a", Target(**{**vars(HERE), "driver": 13010}), "fp16", PROFILES, {}),
        engine_cache.key("a", HERE, "fp32", PROFILES, {}),
        engine_cache.key("a", HERE, "fp16", (one,), {}),
        engine_cache.key("a", HERE, "fp16", PROFILES, {"hardware_compatible": True}),
    }
    assert len(keys) == 6


def _build_in(folder: Path, graph: Path, log: Path) -> None:
    """In a process of its own: the build itself is replaced, the lock, the cache and the gate are real."""
    import time

    import vsum_runtime.export.engine_from_onnx as module

    def slow(*_: Any, **__: Any) -> Built:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        return Built(b"plan", (1,), {})

    module.build_engine = slow
    cached_engine(graph, "fp16", BuildConfig(), SimpleNamespace(), HERE, folder, lambda _: {"max_abs_difference": 0.0})


def test_two_processes_that_want_one_engine_build_it_once(tmp_path: Path) -> None:
    (tmp_path / "scorer.onnx").write_bytes(b"graph")
    spawn = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", tmp_path / "scorer.onnx", tmp_path / "log")
    processes = [spawn.Process(target=_build_in, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    digest = engine_cache.sha256(b"graph")
    assert engine_cache.find(tmp_path / "cache", digest, HERE, "rebuild").plan == b"plan"


def test_engine_that_fails_the_gate_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise ExportError("scores differ by 1")

    monkeypatch.setattr("vsum_runtime.export.engine_from_onnx.build_engine", lambda *_, **__: Built(b"plan", (1,), {}))
    (tmp_path / "scorer.onnx").write_bytes(b"graph")
    with pytest.raises(ExportError, match="differ by 1"):
        cached_engine(
            tmp_path / "scorer.onnx", "fp16", BuildConfig(), SimpleNamespace(), HERE, tmp_path / "cache", refuse
        )
    assert not list((tmp_path / "cache").rglob("engine.*"))


def test_record_is_plain_json_with_the_checksum(tmp_path: Path) -> None:
    record = json.loads((stored(tmp_path) / "engine.json").read_text())
    assert record["sha256"] == engine_cache.sha256(b"plan" * 100)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--engine", "tensorrt", "--max-steps", "10"], 2, "--max-steps: expected at least 3000, got 10"),
        (["--engine", "tensorrt"], 1, r'tensorrt cannot be imported .*pip install "vsum-runtime\[tensorrt\]"'),
    ],
)
def test_engine_that_cannot_be_built_here_is_told(
    tmp_path: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        load_library("tensorrt")
    except BackendError:
        assert cli.main(["--bundle", str(DEFAULT_BUNDLE), *argv]) == code
        assert re.search(message, capsys.readouterr().err)
    else:
        pytest.skip("TensorRT is installed here")


def test_bundle_without_engine_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--bundle", str(DEFAULT_BUNDLE)]) == 2
    assert "--bundle: is for --engine and --triton DIR" in capsys.readouterr().err
