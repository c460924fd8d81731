"""Non-maximum suppression as the definition reads."""

import numpy as np


def iou(first, second):
    both = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return both / (first[1] - first[0] + second[1] - second[0] - both)


def keep(boxes, scores, iou_threshold=0.5):
    kept = []
    for candidate in np.argsort(-np.asarray(scores), kind="stable"):
        if all(iou(boxes[candidate], boxes[other]) < iou_threshold for other in kept):
            kept.append(int(candidate))
    return kept
