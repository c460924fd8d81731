"""Proposals in, one score per step out: what is left to do after a network that answers in segments.

Such a network gives, for one video of T steps,

==========  =====================  ==================  ===========================================================
output      with anchors           without anchors
==========  =====================  ==================  ===========================================================
``cls``     [T, A], 0 to 1         [T], 0 to 1         how sure it is
``loc``     [T, A, 2], any         [T, 2], >= 0        shift and log stretch of the anchor; steps to the left and right
``ctr``                            [T], 0 to 1         how near the step is to the middle of its segment
==========  =====================  ==================  ===========================================================

Source: Zhu et al., "DSNet: A Flexible Detect-to-Summarize Network for Video Summarization", IEEE TIP 2021. Its
published code leaves the order of ties open (here: the lower index first) and answers zeros where no proposal is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.kernels import nms
from vsum_runtime.runtime.errors import BackendError, BundleError


@dataclass(frozen=True)
class Decoder:
    """How a network's outputs are read; the manifest of its bundle holds these fields."""

    anchor_widths: tuple[int, ...]
    """Steps that the A anchors of a step are wide; empty: the network has no anchors."""
    iou_threshold: float
    """Of two proposals that overlap this much (intersection over union, in (0, 1]), the surer one is kept."""

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Decoder:
        """Raise BundleError unless ``entry`` is what ``to_dict`` gives."""
        widths, threshold = entry.get("anchor_widths"), entry.get("iou_threshold")
        if not isinstance(widths, (list, tuple)) or not all(type(width) is int and width >= 1 for width in widths):
            raise BundleError(f"decoder.anchor_widths: expected a list of integers >= 1, got {widths!r}")
        if not isinstance(threshold, (int, float)) or not 0 < threshold <= 1:
            raise BundleError(f"decoder.iou_threshold: expected a number of (0, 1], got {threshold!r}")
        return cls(tuple(widths), float(threshold))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Proposals:
    """All proposals of one video, which of them are kept, and the step scores they make."""

    confidence: NDArray[np.float32]
    """[P] one for each step, or for each anchor of each step, the anchor running fastest."""
    boxes: NDArray[np.int32]
    """[P, 2] half-open ranges of steps inside [0, T); one with start >= end is never kept."""
    kept: NDArray[np.int64]
    """[K] the proposals that are kept, in falling confidence."""
    scores: NDArray[np.float32]
    """[T] the largest confidence among the kept proposals that cover a step, 0 where none does."""

    @property
    def kept_boxes(self) -> NDArray[np.int32]:
        return self.boxes[self.kept]

    @property
    def kept_scores(self) -> NDArray[np.float32]:
        return self.confidence[self.kept]


def decode(
    decoder: Decoder,
    cls: NDArray[np.float32],
    loc: NDArray[np.float32],
    ctr: NDArray[np.float32] | None = None,
) -> Proposals:
    """Turn a network's outputs for one video, without padding, into proposals and step scores.

    Parameters
    ----------
    decoder
        the one that belongs to the network
    cls, loc, ctr
        float32, shaped as the head of this file says; ``ctr`` where there are no anchors

    Returns
    -------
    Proposals
        where none is left, ``scores`` is the largest ``cls`` of each step

    Raises
    ------
    BackendError
        outputs of another shape, or with NaN
    """
    _check(decoder, cls, loc, ctr)
    n_steps = len(cls)
    step = np.arange(n_steps, dtype=np.float32)
    with np.errstate(over="ignore"):  # a width too great for a float is clipped to the video like any other
        if ctr is None:
            width = np.array(decoder.anchor_widths, dtype=np.float32)
            centre = loc[..., 0] * width + step[:, None]
            half = np.exp(loc[..., 1]) * width / 2
            ends = np.stack((centre - half, centre + half), axis=-1)
            confidence = cls.reshape(-1)
        else:
            ends = np.stack((step - loc[:, 0], step + loc[:, 1] + 1), axis=-1)
            confidence = cls * ctr
            confidence = confidence / (confidence.max() + np.float32(1e-8))
    if np.isnan(ends).any() or not np.isfinite(confidence).all():
        raise BackendError("the network gave proposals that are not numbers")
    boxes = np.rint(ends.clip(0, n_steps)).astype(np.int32).reshape(-1, 2)
    legal = np.flatnonzero(boxes[:, 0] < boxes[:, 1])
    kept = legal[nms.keep(boxes[legal], confidence[legal], iou_threshold=decoder.iou_threshold)]

    scores = np.zeros(n_steps, dtype=np.float32)
    for proposal in kept[::-1]:  # the surest comes last and stands
        start, end = boxes[proposal]
        scores[start:end] = confidence[proposal]
    if len(kept) == 0:  # scores of 0 alone would make an empty summary
        scores = cls.reshape(n_steps, -1).max(axis=1)
    return Proposals(confidence, boxes, kept, scores)


def _check(decoder: Decoder, cls: NDArray[Any], loc: NDArray[Any], ctr: NDArray[Any] | None) -> None:
    anchors = (len(decoder.anchor_widths),) if decoder.anchor_widths else ()
    shape = (*cls.shape[:1], *anchors)
    expected = {"cls": shape, "loc": (*shape, 2)} | ({} if anchors else {"ctr": shape})
    found = {name: array.shape for name, array in (("cls", cls), ("loc", loc), ("ctr", ctr)) if array is not None}
    if found != expected or cls.size == 0:
        raise BackendError(f"proposals with anchors {decoder.anchor_widths}: expected {expected}, T >= 1, got {found}")
