import numpy as np
import pytest

from kernels import nms


@pytest.mark.parametrize(("model", "threshold"), [("dsnet_ab", 0.5), ("dsnet_af", 0.4)])
def test_golden_proposals_are_kept(golden, model, threshold):
    arrays = golden.arrays(model)
    for n in (7, 60, 193, 320, 1000):
        boxes, scores = arrays[f"n{n}/boxes"], arrays[f"n{n}/confidence"]
        legal = boxes[:, 0] < boxes[:, 1]
        boxes, scores = boxes[legal], scores[legal]
        kept = nms.keep(boxes, scores, iou_threshold=threshold)
        np.testing.assert_array_equal(scores[kept], arrays[f"n{n}/kept_scores"])
        np.testing.assert_array_equal(boxes[kept], arrays[f"n{n}/kept_boxes"])
