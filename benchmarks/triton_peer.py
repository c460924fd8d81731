"""A real Triton server (from ``nvidia-pytriton``) that scores with the same ONNX file, for ``benchmarks.serving``.

    TRITON/bin/python benchmarks/triton_peer.py scorer.onnx PORT INSTANCES

It needs nvidia-pytriton, numpy below 2 and onnxruntime, and nothing of this project. Triton merges requests of equal
length only; its other settings are its defaults, with as many model instances as our server has workers.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig


def main() -> None:
    graph, port, instances = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    dim = session.get_inputs()[0].shape[2]

    @batch
    def scores(features: np.ndarray) -> dict[str, np.ndarray]:
        lengths = np.full(len(features), features.shape[1], dtype=np.int64)
        return {"scores": session.run(None, {"features": features, "lengths": lengths})[0]}

    config = TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2, http_address="127.0.0.1")
    closed = TritonSecurityConfig(restricted_endpoints=["model-repository", "statistics", "trace", "logging"])
    with Triton(config=config, security_config=closed) as triton:  # as by default, but for shared memory
        triton.bind(
            model_name="default",
            infer_func=[scores] * instances,
            inputs=[Tensor(name="features", dtype=np.float32, shape=(-1, dim))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=16, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
