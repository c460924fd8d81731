from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsum_runtime.runtime.errors import BackendError, BundleError
from vsum_runtime.runtime.proposals import Decoder, decode

ANCHORS = Decoder((4, 8, 16, 32), 0.5)
FREE = Decoder((), 0.4)


@pytest.mark.parametrize(("model", "decoder"), [("dsnet_ab", ANCHORS), ("dsnet_af", FREE)])
def test_decoding_matches_the_authors_code(golden: Any, model: str, decoder: Decoder) -> None:
    arrays = golden.arrays(model)
    for case in golden.cases(model)["cases"]:
        expected = {name: arrays[output["array"]] for name, output in case["outputs"].items()}
        found = decode(decoder, expected["cls"], expected["loc"], expected.get("ctr"))
        np.testing.assert_allclose(found.confidence, expected["confidence"], rtol=0, atol=1e-6)
        off = np.abs(found.boxes - expected["boxes"])
        assert off.max() <= 1
        assert off.any(axis=1).mean() <= 0.002
        assert (np.abs(found.scores - expected["scores"]) <= 1e-6).mean() >= 0.99
        if not off.any():
            np.testing.assert_array_equal(found.kept_boxes, expected["kept_boxes"])
            np.testing.assert_allclose(found.kept_scores, expected["kept_scores"], rtol=0, atol=1e-6)
        assert {found.boxes.dtype, found.confidence.dtype, found.scores.dtype} == {np.dtype("i4"), np.dtype("f4")}


def test_an_anchor_is_shifted_stretched_clipped_and_rounded_half_to_even() -> None:
    decoder = Decoder((4,), 1.0)
    loc = np.zeros((6, 1, 2), dtype=np.float32)
    loc[3, 0] = 0.25, np.log(0.5)  # centre 3 + 1, width 2
    loc[4, 0, 1] = np.log(0.75)  # 2.5 to 5.5
    found = decode(decoder, np.full((6, 1), 0.5, np.float32), loc)
    assert found.boxes.tolist() == [[0, 2], [0, 3], [0, 4], [3, 5], [2, 6], [3, 6]]


def test_without_anchors_the_step_itself_belongs_to_its_segment() -> None:
    cls, ctr = np.array([0.2, 0.8, 0.4], np.float32), np.array([1.0, 0.5, 0.5], np.float32)
    found = decode(FREE, cls, np.zeros((3, 2), np.float32), ctr)
    assert found.boxes.tolist() == [[0, 1], [1, 2], [2, 3]]
    np.testing.assert_allclose(found.scores, [0.5, 1.0, 0.5])


def test_the_surest_proposal_that_covers_a_step_gives_its_score() -> None:
    cls = np.array([[0.3], [0.9], [0.6], [0.1]], np.float32)
    found = decode(Decoder((2,), 0.5), cls, np.zeros((4, 1, 2), np.float32))
    assert found.boxes.tolist() == [[0, 1], [0, 2], [1, 3], [2, 4]]
    assert found.kept.tolist() == [1, 2, 3]  # [0, 1) shares half of [0, 2)
    np.testing.assert_allclose(found.scores, [0.9, 0.9, 0.6, 0.1])


def test_ties_keep_the_earlier_proposal() -> None:
    found = decode(Decoder((4, 4), 0.5), np.full((1, 2), 0.5, np.float32), np.zeros((1, 2, 2), np.float32))
    assert found.kept.tolist() == [0]


def test_where_no_proposal_is_left_the_scores_are_the_largest_confidence_of_each_step() -> None:
    cls = np.array([[0.1, 0.2], [0.4, 0.3]], np.float32)
    loc = np.full((2, 2, 2), -50.0, np.float32)  # every width is 0
    found = decode(Decoder((4, 8), 0.5), cls, loc)
    assert len(found.kept) == 0
    np.testing.assert_array_equal(found.scores, np.array([0.2, 0.4], np.float32))


def test_a_segment_too_wide_for_a_float_is_the_whole_video() -> None:
    loc = np.zeros((3, 1, 2), np.float32)
    loc[1, 0, 1] = 1000.0
    assert decode(Decoder((4,), 0.5), np.full((3, 1), 0.5, np.float32), loc).boxes[1].tolist() == [0, 3]
    free = np.full((3, 2), np.inf, np.float32)
    assert decode(FREE, np.ones(3, np.float32), free, np.ones(3, np.float32)).boxes.tolist() == [[0, 3]] * 3


@pytest.mark.parametrize(
    ("decoder", "outputs", "message"),
    [
        (ANCHORS, [(5, 3), (5, 3, 2)], r"expected {'cls': \(5, 4\)"),
        (ANCHORS, [(5, 4), (5, 4, 2), (5,)], r"got {.*'ctr': \(5,\)}"),
        (FREE, [(5,), (5, 2)], r"'ctr': \(5,\)}, T >= 1, got"),
        (FREE, [(0,), (0, 2), (0,)], r"T >= 1"),
    ],
)
def test_outputs_of_another_network_are_refused(decoder: Decoder, outputs: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        decode(decoder, *(np.zeros(shape, np.float32) for shape in outputs))


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_outputs_that_are_not_numbers_are_refused(broken: int) -> None:
    outputs = [np.ones(4, np.float32), np.ones((4, 2), np.float32), np.ones(4, np.float32)]
    outputs[broken].flat[2] = np.nan
    with pytest.raises(BackendError, match="not numbers"):
        decode(FREE, *outputs)


def test_a_decoder_survives_its_manifest_entry() -> None:
    assert Decoder.from_dict(ANCHORS.to_dict() | {"anchor_widths": [4, 8, 16, 32]}) == ANCHORS


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"iou_threshold": 0.5}, "anchor_widths: expected a list"),
        ({"anchor_widths": [4, 0], "iou_threshold": 0.5}, r"got \[4, 0\]"),
        ({"anchor_widths": [], "iou_threshold": 0}, r"iou_threshold: expected a number of \(0, 1\], got 0"),
    ],
)
def test_a_broken_manifest_entry_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Decoder.from_dict(entry)
