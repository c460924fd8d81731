"""An ONNX scorer in, one with int8 products and LSTMs out, for CPUs: weights fixed, activations quantized as they come.

Convolutions stay in float32: ONNX Runtime's integer ones are slower. Most models lose more than the gate allows, and
``python -m benchmarks.int8`` says which gain, so this is never a default.
"""

from __future__ import annotations

from pathlib import Path

from vsum_runtime.runtime.errors import ExportError


def int8(single: Path, path: Path) -> None:
    """Write the quantized graph.

    Raises
    ------
    ExportError
        the graph cannot be quantized
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    operators = ["MatMul", "Gemm", "LSTM"]
    try:  # Weights of 7 bits: processors without VNNI add products of 8 bits in 16, which overflow.
        quantize_dynamic(single, path, weight_type=QuantType.QInt8, reduce_range=True, op_types_to_quantize=operators)
    except Exception as error:
        raise ExportError(f"the graph cannot be quantized to int8: {error}") from error
