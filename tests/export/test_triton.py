"""A Triton repository from a bundle: its configuration is understood, and a real Triton answers ragged requests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from vsum_runtime.export.cli import main
from vsum_runtime.runtime import Summarizer
from vsum_runtime.runtime.pipeline import DEFAULT_BUNDLE

PORT = 18300
DIM = 1280


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    assert main(["--bundle", str(DEFAULT_BUNDLE), "--triton", str(tmp_path / "repository")]) == 0
    return tmp_path / "repository"


def test_the_configuration_is_one_that_triton_knows(repository: Path) -> None:
    config_of = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format

    config = text_format.Parse((repository / "default_model" / "config.pbtxt").read_text(), config_of.ModelConfig())
    assert config.name == "default_model"
    assert list(config.input[0].dims) == [-1, DIM]
    assert config.input[0].allow_ragged_batch
    assert config.input[1].optional


def test_a_model_that_is_there_is_not_replaced(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(DEFAULT_BUNDLE), "--triton", str(repository)]) == 1
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in repository.iterdir()] == ["default_model"]


@pytest.fixture
def triton(repository: Path, tmp_path: Path) -> Iterator[str]:
    """The server that nvidia-pytriton brings, alone, with its Python backend."""
    python = os.environ.get("VSUM_TRITON_PYTHON")
    if python is None:
        pytest.skip("VSUM_TRITON_PYTHON does not name a Python with nvidia-pytriton and onnxruntime")
    site = next(Path(python).parent.parent.glob("lib/python3.*/site-packages"))
    parts = site / "pytriton" / "tritonserver"
    backend = tmp_path / "backends" / "python"
    shutil.copytree(parts / "backends" / "python", backend)
    version = site.parent.name.removeprefix("python")
    shutil.copy(parts / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    environment = {
        **os.environ,
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
    }
    command = [str(parts / "bin" / "tritonserver"), "--model-repository", str(repository)]
    command += ["--backend-directory", str(backend.parent), "--allow-metrics", "false", "--allow-grpc", "false"]
    command += ["--http-address", "127.0.0.1", "--http-port", str(PORT)]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as process:
        try:
            for _ in range(300):
                try:
                    urlopen(f"http://127.0.0.1:{PORT}/v2/models/default_model/ready", timeout=1)
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise AssertionError((tmp_path / "log").read_text()[-2000:])
            yield f"127.0.0.1:{PORT}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_a_real_triton_scores_ragged_requests_as_the_runtime_does(triton: str, rng: np.random.Generator) -> None:
    client_of = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

    def ask(client: Any, features: np.ndarray, lengths: list[int] | None = None) -> np.ndarray:
        inputs = [client_of.InferInput("features", list(features.shape), "FP32")]
        inputs[0].set_data_from_numpy(features)
        if lengths is not None:
            inputs.append(client_of.InferInput("lengths", [len(lengths), 1], "INT64"))
            inputs[1].set_data_from_numpy(np.array(lengths, dtype=np.int64)[:, None])
        found: np.ndarray = client.infer("default_model", inputs).as_numpy("scores")
        return found

    def alone(features: np.ndarray) -> np.ndarray:
        with client_of.InferenceServerClient(triton) as client:
            return ask(client, features)

    videos = [rng.random((1, n, DIM), dtype=np.float32) for n in (5, 90, 33, 5, 61, 12, 7, 40)]
    with Summarizer() as summarizer, ThreadPoolExecutor(8) as pool:
        expected = summarizer.score([video[0] for video in videos])
        for scores, right in zip(pool.map(alone, videos), expected, strict=True):
            np.testing.assert_allclose(scores[0], right, atol=1e-5)
        padded = np.zeros((2, 90, DIM), dtype=np.float32)
        padded[0], padded[1, :33] = videos[1][0], videos[2][0]
        with client_of.InferenceServerClient(triton) as client:
            scores = ask(client, padded, [90, 33])
            np.testing.assert_allclose(scores[1, :33], expected[2], atol=1e-5)
            assert not scores[1, 33:].any()
            with pytest.raises(client_of.InferenceServerException, match="lengths: expected 2 values"):
                ask(client, padded, [90, 91])
