"""The model that Triton's Python backend runs: requests of different lengths in, padded batches to the ONNX graph.

``vsum-export --triton`` copies this file into a model repository; it needs numpy and onnxruntime, and nothing of vsum.
Triton hands over the requests that wait together, whatever their lengths, because the configuration beside it allows
ragged batches. On a GPU videos of like length are padded into one call; on a CPU each runs alone, which is faster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

BATCH_TOKENS = {"GPU": 16_384, "CPU": 1}  # padded steps worth one call


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        kind = args["model_instance_kind"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider: Any = "CPUExecutionProvider"
        if kind == "GPU":
            provider = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})
        graph = Path(args["model_repository"]) / args["model_version"] / "scorer.onnx"
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
        self._batch_tokens = BATCH_TOKENS.get(kind, 1)
        self._feature_dim = json.loads(args["model_config"])["input"][0]["dims"][-1]

    def execute(self, requests: list[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        videos, owners = [], []
        for i, request in enumerate(requests):
            try:
                rows = self._videos(request)
            except ValueError as error:
                answers[i] = triton.InferenceResponse(error=triton.TritonError(str(error)))
                continue
            videos += rows
            owners += [i] * len(rows)
        scores = self._score(videos)
        for i, request in enumerate(requests):
            if answers[i] is None:
                n_steps = triton.get_input_tensor_by_name(request, "features").as_numpy().shape[1]
                mine = [scores[v] for v, owner in enumerate(owners) if owner == i]
                padded = np.zeros((len(mine), n_steps), dtype=np.float32)
                for row, values in zip(padded, mine, strict=True):
                    row[: len(values)] = values
                answers[i] = triton.InferenceResponse([triton.Tensor("scores", padded)])
        return answers

    def _videos(self, request: Any) -> list[Any]:
        features = triton.get_input_tensor_by_name(request, "features").as_numpy()
        given = triton.get_input_tensor_by_name(request, "lengths")
        n_videos, n_steps, _ = features.shape
        lengths = [n_steps] * n_videos if given is None else given.as_numpy().reshape(-1).tolist()
        if n_steps < 1 or len(lengths) != n_videos or not all(1 <= n <= n_steps for n in lengths):
            raise ValueError(f"lengths: expected {n_videos} values of 1 to {n_steps}, got {lengths[:8]}")
        videos = [rows[:n] for rows, n in zip(features, lengths, strict=True)]
        if not all(np.isfinite(rows).all() for rows in videos):
            raise ValueError("features: expected finite values, got NaN or infinity")
        return videos

    def _score(self, videos: list[Any]) -> dict[int, Any]:
        scores = {}
        order = sorted(range(len(videos)), key=lambda v: len(videos[v]))
        while order:
            batch = [order.pop(0)]
            while order and (len(batch) + 1) * len(videos[order[0]]) <= self._batch_tokens:
                batch.append(order.pop(0))
            lengths = np.array([len(videos[v]) for v in batch], dtype=np.int64)
            padded = np.zeros((len(batch), lengths.max(), self._feature_dim), dtype=np.float32)
            for row, v in zip(padded, batch, strict=True):
                row[: len(videos[v])] = videos[v]
            found = self._session.run(["scores"], {"features": padded, "lengths": lengths})[0]
            scores.update({v: found[row, : lengths[row]] for row, v in enumerate(batch)})
        return scores
