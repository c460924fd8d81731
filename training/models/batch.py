"""A padded batch: B videos of different lengths in one tensor [B, T, ...]; what is past a length is padding."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vsum_runtime.runtime.errors import InputError

_state = threading.local()
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first came with PyTorch 2.7


@contextmanager
def values_unread() -> Iterator[None]:
    """Models called inside read no value of their inputs, and so check nothing: the caller has.

    Reading a value from a GPU waits for it, which cannot be recorded in a CUDA graph.
    """
    before, _state.unread = may_read_values(), True
    try:
        yield
    finally:
        _state.unread = not before


def may_read_values() -> bool:
    """False inside ``values_unread``."""
    return not getattr(_state, "unread", False)


def check_batch(features: Tensor, lengths: Tensor, feature_dim: int, dtype: torch.dtype) -> None:
    """Refuse what no model can score.

    Values of ``lengths`` are not looked at while a model is being exported: a graph cannot raise. Inside
    ``values_unread`` nothing is looked at.

    Raises
    ------
    InputError
        features other than [B, T, feature_dim] of ``dtype`` with B, T >= 1, lengths other than int64 [B], or a length
        outside 1..T
    """
    if not torch.compiler.is_compiling() and not may_read_values():
        return
    if features.ndim != 3 or features.shape[-1] != feature_dim or features.dtype != dtype:
        raise InputError(
            f"features: expected [B, T, {feature_dim}] {dtype}, got {list(features.shape)} {features.dtype}; "
            "give features of the kind the model was built for, one row a step"
        )
    if lengths.ndim != 1 or lengths.dtype != torch.int64:
        raise InputError(f"lengths: expected [B] torch.int64, got {list(lengths.shape)} {lengths.dtype}")
    if torch.compiler.is_compiling():
        return
    n_videos, n_steps, _ = features.shape
    if n_videos < 1 or n_steps < 1 or lengths.shape[0] != n_videos:
        raise InputError(
            f"features and lengths: expected [B, T, D] and [B] with B, T >= 1, "
            f"got {list(features.shape)} and {list(lengths.shape)}"
        )
    if lengths.min() < 1 or lengths.max() > n_steps:
        raise InputError(f"lengths: expected 1 to T={n_steps}, the steps in features, got {lengths.tolist()}")


def valid(lengths: Tensor, n_rows: int) -> Tensor:
    """Lengths [...] -> bool [..., n_rows], True for the rows before each length."""
    return torch.arange(n_rows, device=lengths.device) < lengths.unsqueeze(-1)


def at_least(least: int, size: int) -> int:
    """The larger of the two; ``size`` depends on T.

    While a model is exported, the result is a size of its own, known to be >= ``least`` and nothing else. Of a formula
    in T, torch.export would try to prove what later operators ask about it, and refuse T where it cannot.
    """
    if not _exporting():
        return max(least, size)
    free: Any = torch.scalar_tensor(size, dtype=torch.int64).clamp(min=least).item()
    torch._check(free >= least)
    return free


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B, R, C], rows int64 [B, K] -> [B, K, C], where out[b, k] = x[b, rows[b, k]]."""
    first_row = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return torch.nn.functional.embedding(first_row[:, None] + rows, x.flatten(0, 1))
