from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.reference import nms as twin
from vsum_runtime.kernels import nms


@pytest.mark.parametrize(("model", "threshold"), [("dsnet_ab", 0.5), ("dsnet_af", 0.4)])
def test_golden_proposals_are_kept(golden: Any, model: Any, threshold: Any) -> None:
    arrays = golden.arrays(model)
    for n in (7, 60, 193, 320, 1000):
        boxes, scores = arrays[f"n{n}/boxes"], arrays[f"n{n}/confidence"]
        legal = boxes[:, 0] < boxes[:, 1]
        boxes, scores = boxes[legal], scores[legal]
        kept = nms.keep(boxes, scores, iou_threshold=threshold)
        np.testing.assert_array_equal(scores[kept], arrays[f"n{n}/kept_scores"])
        np.testing.assert_array_equal(boxes[kept], arrays[f"n{n}/kept_boxes"])


def test_random_proposals_agree_with_the_twin(rng: np.random.Generator) -> None:
    for _ in range(200):
        starts = rng.integers(0, 40, int(rng.integers(1, 60)))
        boxes = np.stack([starts, starts + rng.integers(1, 20, len(starts))], axis=1)
        scores = rng.integers(0, 8, len(starts)) / 8
        threshold = float(rng.choice([0.25, 0.4, 0.5, 1.0]))
        kept = nms.keep(boxes, scores, iou_threshold=threshold)
        assert kept.tolist() == twin.keep(boxes.tolist(), scores, threshold)


def test_before_the_compiler_is_started_the_same_are_kept(rng: np.random.Generator, not_started: None) -> None:
    test_random_proposals_agree_with_the_twin(rng)
    test_ties_go_to_the_lower_index_and_the_threshold_itself_removes()
    test_no_proposals_are_kept_of_none()


def test_ties_go_to_the_lower_index_and_the_threshold_itself_removes() -> None:
    assert nms.keep([[0, 2], [0, 4], [8, 9]], [0.5, 0.5, 0.5], iou_threshold=0.5).tolist() == [0, 2]
    assert nms.keep([[0, 2], [0, 4], [8, 9]], [0.5, 0.5, 0.5], iou_threshold=0.51).tolist() == [0, 1, 2]


def test_no_proposals_are_kept_of_none() -> None:
    assert nms.keep(np.zeros((0, 2)), []).tolist() == []


@pytest.mark.parametrize(
    ("boxes", "scores", "options", "message"),
    [
        ([0, 2], [0.5], {}, r"boxes, scores: .*\(2,\) and \(1,\)"),
        ([[0, 2]], [0.5, 0.5], {}, r"boxes, scores: .*\(1, 2\) and \(2,\)"),
        ([[0, np.nan]], [0.5], {}, "boxes: .*NaN or infinity"),
        ([[0, 2]], [np.inf], {}, "scores: .*NaN or infinity"),
        ([[2, 2]], [0.5], {}, r"boxes: expected start < end, got \[2.0, 2.0\] at proposal 0"),
        ([[0, 2]], [0.5], {"iou_threshold": 0.0}, "iou_threshold: .*got 0.0"),
        ([[0, 2]], [0.5], {"iou_threshold": 1.1}, "iou_threshold: .*got 1.1"),
        ([[0, 2]], [0.5], {"iou_threshold": np.nan}, "iou_threshold: .*got nan"),
    ],
)
def test_bad_input_is_refused(boxes: NDArray[Any], scores: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nms.keep(boxes, scores, **options)
