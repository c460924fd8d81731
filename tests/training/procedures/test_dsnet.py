from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.datasets import Video
from vsum_runtime.training.models import build, load_reference_state_dict
from vsum_runtime.training.models.dsnet import AnchorOutputs
from vsum_runtime.training.procedures.dsnet import (
    AnchorBased,
    AnchorFree,
    anchor_loss,
    anchor_targets,
    draw_labels,
    free_loss,
    free_targets,
    key_segments,
)

CONFIG = AnchorBased.defaults


class Case:
    """The golden loss of one form: targets, the model's outputs, expected values."""

    def __init__(self, reference: Any) -> None:
        self.model = build(reference.file["model"], **reference.file["config"]).eval()
        weights = reference.weights(reference.file["state_dict"], reference.file["overrides"])
        load_reference_state_dict(self.model, weights)
        (self.expected,) = reference.file["losses"]
        self.n_steps = self.expected["n_steps"]
        self.segments = np.array(self.expected["target_intervals"])
        self.arrays = {
            name.removeprefix("loss/"): torch.from_numpy(array)
            for name, array in reference.arrays.items()
            if name.startswith("loss/")
        }
        outputs = self.model(reference.features(self.n_steps)[None], torch.tensor([self.n_steps]))
        self.outputs = type(outputs)(*(output[0] for output in outputs))

    def check(self, losses: dict[str, torch.Tensor]) -> None:
        tolerance = {"rel": self.expected["tolerance"]["rtol"], "abs": self.expected["tolerance"]["atol"]}
        losses["total"] = losses.pop("loss")
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(
            self.expected["values"], **tolerance
        )
        losses["total"].backward()
        gradients = self.model.reference_views({name: weight.grad for name, weight in self.model.named_parameters()})
        norms = {name: gradients[name].norm().item() for name in self.expected["grad_norms"]}
        assert norms == pytest.approx(self.expected["grad_norms"], **tolerance)


def test_anchor_targets_loss_and_gradients_match_the_authors_code(model_golden: Any) -> None:
    case = Case(model_golden("dsnet_ab"))
    iou, offsets = anchor_targets(case.segments, case.n_steps, (4, 8, 16, 32))
    for name, threshold in (("pos_iou06", 0.6), ("touch_iou0", 0.0), ("touch_iou03", 0.3)):
        assert torch.equal(iou > threshold, case.arrays[name].bool()), name
    torch.testing.assert_close(offsets, case.arrays["offsets"])
    case.check(anchor_loss(case.outputs, case.arrays["label"], offsets))


def test_anchor_free_targets_loss_and_gradients_match_the_authors_code(model_golden: Any) -> None:
    case = Case(model_golden("dsnet_af"))
    targets = free_targets(case.segments, case.n_steps)
    torch.testing.assert_close(targets[1], case.arrays["offsets"])
    torch.testing.assert_close(targets[2], case.arrays["centerness"])
    case.check(free_loss(case.outputs, *targets))


def test_labels_are_drawn_from_untouched_and_barely_touched_anchors() -> None:
    iou = torch.zeros(60, 4)
    iou[:4, 0], iou[10:13, 1], iou[20:40, 2], iou[50, 3] = 0.7, 0.2, 0.5, 0.6
    labels = draw_labels(iou, CONFIG)
    assert torch.equal(labels == 1, iou > 0.6)
    negative = labels == -1
    assert int((negative & (iou == 0)).sum()) == 8  # two for each of the 4 positive ones
    assert int((negative & (iou == 0.2)).sum()) == 3  # one each, of which there are 3
    assert int(negative.sum()) == 11
    assert not torch.equal(draw_labels(iou, CONFIG), labels)


def test_of_two_segments_that_make_an_anchor_positive_the_later_gives_its_target() -> None:
    iou, offsets = anchor_targets(np.array([[0, 10], [0, 12]]), 20, [10])
    assert iou[5, 0] == 1
    assert offsets[5, 0].tolist() == pytest.approx([0.1, np.log(1.2)])


def test_without_a_positive_anchor_the_loss_is_0() -> None:
    outputs = AnchorOutputs(torch.full((5, 4), 0.5, requires_grad=True), torch.zeros(5, 4, 2, requires_grad=True))
    losses = anchor_loss(outputs, torch.zeros(5, 4), torch.zeros(5, 4, 2))
    losses["loss"].backward()
    assert {name: value.item() for name, value in losses.items()} == {"loss": 0, "cls": 0, "loc": 0}


def test_a_segment_of_one_step_has_no_centre_and_a_finite_loss() -> None:
    inside, distances, centreness = free_targets(np.array([[2, 3], [4, 7]]), 8)
    assert inside.tolist() == [False, False, True, False, True, True, True, False]
    assert distances[2].tolist() == [0, 0]
    assert centreness.tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0, 0])


def test_confidence_of_0_and_1_has_a_finite_loss() -> None:
    case = free_targets(np.array([[1, 3]]), 4)
    outputs = build("dsnet_af", feature_dim=8)(torch.rand(1, 4, 8), torch.tensor([4]))
    outputs = type(outputs)(torch.tensor([1.0, 0.0, 0.0, 1.0]), outputs.loc[0], torch.zeros(4))
    assert all(torch.isfinite(value) for value in free_loss(outputs, *case).values())


def test_key_segments_are_the_shots_a_summary_would_keep(videos: list[Video]) -> None:
    video = videos[0]  # 40 steps in shots of 5; 15 % of the frames holds one shot
    scores = np.full(40, 0.25, np.float32)
    scores[[3, 12]] = 0, 1
    assert key_segments(replace(video, gtscore=scores)).tolist() == [[10, 15]]
    halves = np.array([[0, 300], [300, 600]])
    assert key_segments(replace(video, shots=halves)).tolist() == []  # neither fits


def test_neighbouring_key_shots_are_one_segment(videos: list[Video]) -> None:
    bounds = np.arange(0, 601, 30)  # shots of two steps, three of which fit
    scores = np.zeros(40, np.float32)
    scores[[4, 5, 6, 7, 38, 39]] = 1
    video = replace(videos[0], shots=np.stack((bounds[:-1], bounds[1:]), axis=1), gtscore=scores)
    assert key_segments(video).tolist() == [[4, 8], [38, 40]]


def test_shot_values_are_cut_to_whole_thousandths(videos: list[Video]) -> None:
    scores = np.zeros(40, np.float32)
    scores[[0, 39]] = 1, 1e-3
    scores[10:15] = 0.0009
    first = replace(videos[0], gtscore=scores, shots=np.array([[0, 150], [150, 225], [225, 600]]))
    assert key_segments(first).tolist() == []  # the first shot does not fit, the second is worth 0.0009, cut to 0


def test_videos_without_key_segments_are_refused_if_there_is_no_other(videos: list[Video]) -> None:
    blank = replace(videos[0], gtscore=np.zeros(40, np.float32))
    procedure = AnchorFree(build("dsnet_af", feature_dim=8), AnchorFree.defaults, n_epochs=1)
    procedure.run_epoch([blank, videos[2]], 1)
    with pytest.raises(InputError, match="got 1 without any"):
        procedure.run_epoch([blank], 1)
