"""From a checkpoint to an answer of the server: a bundle that gives scores, and one that gives proposals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsum_runtime.export import cli
from vsum_runtime.runtime import Summarizer

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
clients = [
    pytest.importorskip(f"tritonclient.{kind}", reason="tritonclient is not installed") for kind in ("http", "grpc")
]

from vsum_runtime.runtime.serve import Server  # noqa: E402

D = 16
SMALL: dict[str, dict[str, Any]] = {"vasnet": {}, "dsnet_ab": {}}


def test_unmodified_clients_get_the_scores_of_every_bundle(
    checkpoint: Callable[..., Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    for name, options in SMALL.items():
        made = checkpoint(tmp_path / f"{name}.safetensors", name=name, feature_dim=D, **options)
        assert cli.main(["--checkpoint", str(made), "--out", str(tmp_path / "bundles" / name)]) == 0
    features = rng.gamma(0.5, size=(3, 60, D)).astype(np.float32)
    lengths = np.array([60, 14, 33], dtype=np.int64)
    entries = tuple(str(tmp_path / "bundles" / name) for name in SMALL)
    with Server(port=0, grpc_port=0, bundle=entries) as server:
        for client_of, port in zip(clients, (server.port, server.grpc_port), strict=True):
            with client_of.InferenceServerClient(f"127.0.0.1:{port}") as client:
                for name in SMALL:
                    assert client.is_model_ready(name)
                    inputs = [
                        client_of.InferInput("features", list(features.shape), "FP32"),
                        client_of.InferInput("lengths", [3], "INT64"),
                    ]
                    inputs[0].set_data_from_numpy(features)
                    inputs[1].set_data_from_numpy(lengths)
                    scores = client.infer(name, inputs).as_numpy("scores")
                    with Summarizer(tmp_path / "bundles" / name) as summarizer:
                        alone = [summarizer.score([features[b, :n]])[0] for b, n in enumerate(lengths)]
                    for row, right in zip(scores, alone, strict=True):
                        np.testing.assert_allclose(row[: len(right)], right, atol=1e-5)
                        assert not row[len(right) :].any()
