"""Recipes, and the way from pictures to feature rows."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, InputError
from vsum_runtime.runtime.extractor import extract, preprocess
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0, GOOGLENET, RECIPES, Recipe

TINY = dataclasses.replace(EFFICIENTNET_LITE0, width=4, height=3, feature_dim=3)


def mean_colours(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    return pictures.mean(axis=(2, 3))


def test_preprocess_is_the_published_formula(rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, size=(2, 3, 4, 3), dtype=np.uint8)
    planes = preprocess(frames, TINY)
    assert (planes.dtype, planes.shape, planes.flags.c_contiguous) == (np.float32, (2, 3, 3, 4), True)
    for (b, row, column, colour), pixel in np.ndenumerate(frames):
        assert planes[b, colour, row, column] == (float(pixel) - 127) / 128


def test_googlenet_normalisation_is_imagenets(rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, size=(1, 224, 224, 3), dtype=np.uint8)
    planes = preprocess(frames, GOOGLENET)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(planes[0].transpose(1, 2, 0), (frames[0] / 255 - mean) / deviation, atol=1e-5)


def test_channel_order_and_layout(rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, size=(2, 3, 4, 3), dtype=np.uint8)
    plain = preprocess(frames, TINY)
    flipped = preprocess(frames, dataclasses.replace(TINY, channel_order="bgr"))
    np.testing.assert_array_equal(flipped, plain[:, ::-1])
    last = preprocess(frames, dataclasses.replace(TINY, layout="NHWC"))
    np.testing.assert_array_equal(last, plain.transpose(0, 2, 3, 1))


def test_mean_and_scale_follow_the_channel_order() -> None:
    frames = np.zeros((1, 3, 4, 3), dtype=np.uint8)
    frames[..., 2] = 10  # blue
    recipe = dataclasses.replace(TINY, channel_order="bgr", mean=(10.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0))
    assert np.all(preprocess(frames, recipe) == 0)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 4, 3, 3), dtype=np.uint8),
        np.zeros((3, 4, 3), dtype=np.uint8),
        np.zeros((1, 3, 4, 3), dtype=np.float32),
        np.zeros((1, 3, 4, 1), dtype=np.uint8),
    ],
)
def test_pictures_of_another_shape_are_refused(frames: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[b, 3, 4, 3\]"):
        preprocess(frames, TINY)


def test_extract_keeps_the_order_whatever_the_blocks(rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, size=(7, 3, 4, 3), dtype=np.uint8)
    rows = extract([frames[:3], frames[3:6], frames[6:]], TINY, mean_colours)
    assert (rows.shape, rows.dtype) == ((7, 3), np.float32)
    np.testing.assert_array_equal(rows, extract([frames], TINY, mean_colours))


@pytest.mark.parametrize("n_callers", [2, 5])
def test_callers_side_by_side_keep_the_order(rng: np.random.Generator, n_callers: int) -> None:
    frames = rng.integers(0, 256, size=(30, 3, 4, 3), dtype=np.uint8)
    together = threading.Barrier(n_callers, timeout=10)

    def meeting(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        together.wait()  # each call needs the others
        return mean_colours(pictures)

    rows = extract([frames[i : i + 1] for i in range(30)], TINY, meeting, n_callers=n_callers)
    np.testing.assert_array_equal(rows, extract([frames], TINY, mean_colours))


def test_blocks_wait_for_those_before_them() -> None:
    enough, done = threading.Event(), []

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for number in range(20):
            assert len(done) >= number - 5  # two run, two wait, and one more was made
            if number == 4:
                enough.set()
            yield np.zeros((1, 3, 4, 3), np.uint8)

    def network(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        assert enough.wait(10)
        done.append(True)
        return mean_colours(pictures)

    assert len(extract(blocks(), TINY, network, n_callers=2)) == 20


def test_an_error_of_a_caller_or_of_the_frames_is_raised() -> None:
    block = np.zeros((1, 3, 4, 3), np.uint8)

    def failing(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        raise BackendError("out of order")

    with pytest.raises(BackendError, match="out of order"):
        extract([block] * 20, TINY, failing, n_callers=2)

    def torn() -> Iterator[NDArray[np.uint8]]:
        yield block
        raise InputError("torn")

    with pytest.raises(InputError, match="torn"):
        extract(torn(), TINY, mean_colours, n_callers=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vsum-features")]


def test_l2_rows_have_length_one_and_zero_rows_stay_zero(rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, size=(3, 3, 4, 3), dtype=np.uint8)
    recipe = dataclasses.replace(TINY, l2_normalize=True, mean=(0.0, 0.0, 0.0))
    frames[1] = 0
    rows = extract([frames], recipe, mean_colours)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1], atol=1e-6)


def test_extract_refuses_no_frames() -> None:
    with pytest.raises(InputError, match="at least one block"):
        extract([], TINY, mean_colours)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda pictures: np.zeros((len(pictures), 4), np.float32), r"expected rows \[2, 3\], got \(2, 4\)"),
        (lambda pictures: np.zeros((1, 3), np.float32), r"expected rows \[2, 3\], got \(1, 3\)"),
        (lambda pictures: np.full((len(pictures), 3), np.nan, np.float32), "finite"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        extract([np.zeros((2, 3, 4, 3), np.uint8)], TINY, network)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_recipes_survive_json(recipe: Recipe) -> None:
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_digest_covers_what_decides_the_numbers_and_nothing_else() -> None:
    changed: dict[str, Any] = {
        "name": "other",
        "feature_dim": 7,
        "width": 225,
        "height": 225,
        "mean": (0.0, 0.0, 0.0),
        "scale": (1.0, 1.0, 1.0),
        "channel_order": "bgr",
        "layout": "NHWC",
        "l2_normalize": True,
        "rate_hz": 1.0,
    }
    digests = {dataclasses.replace(EFFICIENTNET_LITE0, **{key: value}).digest for key, value in changed.items()}
    assert len(digests) == len(changed)
    assert EFFICIENTNET_LITE0.digest not in digests
    renamed = dataclasses.replace(EFFICIENTNET_LITE0, network="renamed.onnx", source="elsewhere")
    assert renamed.digest == EFFICIENTNET_LITE0.digest


def test_digest_is_stable() -> None:
    # Feature files carry it: a change here makes every one of them look foreign.
    assert EFFICIENTNET_LITE0.digest == "8f53384c406faffe711c71295640475992ab653a18203e7df39955630d486087"
    assert dataclasses.replace(EFFICIENTNET_LITE0, rate_hz=2).digest == EFFICIENTNET_LITE0.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": "stretch"}, "fit"),
        ({"fit": "center_crop"}, "shorter_side"),
        ({"shorter_side": 256}, "shorter_side"),
        ({"fit": "center_crop", "shorter_side": 100}, "at least the crop"),
        ({"channel_order": "gbr"}, "channel_order"),
        ({"layout": "CHW"}, "layout"),
        ({"scale": (1.0, 0.0, 1.0)}, "scale"),
        ({"mean": (1.0,)}, "three numbers"),
        ({"mean": (1.0, float("nan"), 1.0)}, "three numbers"),
        ({"mean": "127"}, "three numbers"),
        ({"stride": 15}, "either stride or rate_hz"),
        ({"rate_hz": None}, "either stride or rate_hz"),
        ({"rate_hz": -1.0}, "rate_hz"),
        ({"rate_hz": "2"}, "rate_hz"),
        ({"width": 0}, "width"),
        ({"width": 224.0}, "whole number"),
        ({"l2_normalize": 1}, "l2_normalize"),
        ({"network": "../secret.onnx"}, "without folders"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(EFFICIENTNET_LITE0, **changes)


def test_foreign_recipes_are_refused() -> None:
    plain = EFFICIENTNET_LITE0.to_dict()
    del plain["fit"]
    with pytest.raises(InputError, match=r"missing \['fit'\], unknown \['crop'\]"):
        Recipe.from_dict({**plain, "crop": 1})
