"""What only a GPU can show. Everything here skips without one, and needs no library that a CUDA image lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.card import ask_rtx
from benchmarks.gpu.graphs import export, fresh, paths
from vsum_runtime.runtime.backends import absences, backend, open_session
from vsum_runtime.runtime.backends.base import Session
from vsum_runtime.runtime.backends.tensorrt import cuda
from vsum_runtime.runtime.errors import BackendError, InputError
from vsum_runtime.runtime.proposals import decode
from vsum_runtime.training.cuda_graph import CudaGraphScorer
from vsum_runtime.training.models import MODELS

pytestmark = pytest.mark.gpu

D = 64
LENGTHS = (1, 7, 60, 333, 320)
LIMIT = {"fp32": 1e-4, "fp16": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no NVIDIA GPU here")


@pytest.fixture(scope="module")
def ort_cuda() -> str:
    return _present("ort-cuda")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def _present(name: str) -> str:
    if (reason := absences()[name]) is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def _graph(graphs: Path, model: str, precision: str = "fp32") -> Path:
    assert export(model, D, graphs) == ""
    return paths(graphs, model, D)[precision == "fp16"]


def _inputs(lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
    """Videos of mixed length; what stands in the padding must not matter."""
    features = np.random.default_rng(0).standard_normal((len(lengths), max(lengths), D), dtype=np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return {"features": features, "lengths": np.array(lengths)}


def _scores(session: Session, model: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    outputs, decoder = session.run(inputs), getattr(fresh(model, D), "decoder", None)
    rows = [[output[row, :n] for output in outputs] for row, n in enumerate(inputs["lengths"])]
    return [row[0] if decoder is None else decode(decoder, *row).scores for row in rows]


def _assert_same_scores(session: Session, graphs: Path, model: str, limit: float) -> None:
    inputs = _inputs()
    expected = _scores(open_session(_graph(graphs, model), "ort-cpu"), model, inputs)
    for found, wanted in zip(_scores(session, model, inputs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", list(MODELS))
def test_onnx_runtime_on_the_card_gives_the_scores_of_the_cpu_on_a_ragged_batch(
    ort_cuda: str, graphs: Path, model: str, precision: str
) -> None:
    session = backend(ort_cuda).open(_graph(graphs, model, precision), precision=precision, n_threads=None)
    assert (session.name, session.precision) == (ort_cuda, precision)
    _assert_same_scores(session, graphs, model, LIMIT[precision])
    session.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", ["vasnet", "csta", "ac_sum_gan"])
@pytest.mark.parametrize("name", ["ort-tensorrt", "ort-tensorrt-rtx"])
def test_providers_that_build_engines_give_the_scores_of_the_cpu_and_open_again_from_their_cache(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: str, precision: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        session = backend(_present(name)).open(_graph(graphs, model, precision), precision=precision, n_threads=None)
        _assert_same_scores(session, graphs, model, LIMIT[precision])
        with pytest.raises(InputError, match=r"at most 10000 steps.* got 20000"):
            session.run(_inputs((20_000,)))
        session.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", list(MODELS))
def test_tensorrt_gives_the_scores_of_the_cpu_on_a_ragged_batch(graphs: Path, model: str, precision: str) -> None:
    _present("tensorrt")
    from vsum_runtime.export.engine_from_onnx import BuildConfig, build_engine, load_library
    from vsum_runtime.runtime.backends.tensorrt.engine_cache import Engine
    from vsum_runtime.runtime.backends.tensorrt.native import TensorrtSession
    from vsum_runtime.runtime.backends.tensorrt.profiles import Profile

    config = BuildConfig(profiles=(Profile(best=(4, 320), most=(8, 512)),))
    library = load_library("tensorrt")
    plan = build_engine(_graph(graphs, model, precision), config, library).plan
    session = TensorrtSession(library, cuda.open_cuda(), Engine(plan, config.profiles, {}), precision)
    _assert_same_scores(session, graphs, model, LIMIT[precision])
    first, second = (session.run(_inputs()) for _ in range(2))  # recorded, then replayed
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match=r"at most 512 steps.* got 20000"):
        session.run(_inputs((20_000,)))
    _assert_same_scores(session, graphs, model, LIMIT[precision])
    session.close()


@pytest.mark.parametrize("model", list(MODELS))
def test_recorded_graph_gives_the_scores_of_the_model_and_replays_alike(graphs: Path, model: str) -> None:
    scorer = CudaGraphScorer(fresh(model, D), precision="fp32")
    _assert_same_scores(scorer, graphs, model, 1e-3)  # PyTorch's convolutions use TF32
    first, other, again = scorer.run(_inputs()), scorer.run(_inputs((5, 300))), scorer.run(_inputs())
    assert other[0].shape[:2] == (2, 300)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # sums of atomics may differ in order
    scorer.close()


def test_replay_depends_on_what_the_request_holds() -> None:
    scorer = CudaGraphScorer(fresh("vasnet", D), precision="fp32")
    inputs = _inputs((320, 320))
    (before,) = scorer.run(inputs)
    (swapped,) = scorer.run({**inputs, "features": inputs["features"][::-1].copy()})
    np.testing.assert_allclose(swapped, before[::-1], rtol=0, atol=1e-6)
    assert np.abs(swapped - before).max() > 1e-6


def test_film_of_20000_steps_is_scored_and_the_next_request_is_served(ort_cuda: str, graphs: Path) -> None:
    session = open_session(_graph(graphs, "vasnet"), ort_cuda)
    (scores,) = session.run(_inputs((20_000,)))  # 1.6 GB of attention weights
    assert scores.shape == (1, 20_000)
    assert np.isfinite(scores).all()
    assert session.run(_inputs((60,)))[0].shape == (1, 60)


@pytest.mark.parametrize("way", ["ort-cuda", "torch-cuda-graph"])
def test_request_larger_than_the_memory_is_a_backend_error_and_the_next_one_is_served(graphs: Path, way: str) -> None:
    session: Session
    if way == "ort-cuda":
        session = open_session(_graph(graphs, "pgl_sum"), _present("ort-cuda"))
    else:
        session = CudaGraphScorer(fresh("pgl_sum", D), precision="fp32")
    # Attention weights of one head alone: n x n x 4 bytes, twice the card's memory.
    n_steps = int((2 * torch.cuda.get_device_properties(0).total_memory / 4) ** 0.5)
    with pytest.raises(BackendError):
        session.run(_inputs((n_steps,)))
    assert session.run(_inputs((60,)))[0].shape == (1, 60)
    session.close()


def test_tensorrt_rtx_answers_or_says_why_not() -> None:
    answers = ask_rtx()
    assert "absent" in answers or {"version", "built for this card", "built for 8.9"} == answers.keys()
