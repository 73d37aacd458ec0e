"""A picture that answers is read whatever it shows: no cell at all is an answer, and so is one cell everywhere."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from isocenter.client import NotAnAnswer, Prediction
from isocenter.client.answers import Cells, Format, Reply
from isocenter.core.tensor import Array
from isocenter.imaging.codecs import label_image, overlay
from isocenter.imaging.limits import ImageLimits


def cells(form: Format, content: bytes) -> Cells:
    return Cells(format=form, media_type="image/png", content=content, request_id="r")


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("write", [label_image.png, label_image.tiff], ids=["PNG", "TIFF"])
def test_labels_that_are_all_alike_are_labels(label: int, write: Callable[[Array], bytes]) -> None:
    labels = np.full((5, 7), label, np.uint32)
    assert np.array_equal(cells("labels", write(labels)).pixels(), labels)


def test_an_overlay_of_nothing_on_black_is_a_picture() -> None:
    picture = overlay.png(np.zeros((5, 7), np.uint8), np.zeros((5, 7), np.uint32))
    assert not cells("overlay", picture).pixels().any()


def test_labels_of_a_large_picture_without_cells_are_no_bomb() -> None:
    nothing = label_image.png(np.zeros((6000, 6000), np.uint32))
    assert not cells("labels", nothing).pixels().any()


def test_an_overlay_may_have_more_bytes_than_the_image_that_it_is_of() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (3500, 3500, 3), np.uint8)
    picture = overlay.png(noise, np.zeros(noise.shape[:2], np.uint32))
    assert len(picture) > ImageLimits().max_bytes
    assert np.array_equal(cells("overlay", picture).pixels(), noise)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, json.dumps({"prediction": "x", "confidence": 1, "probabilities": {}, "model": "m"}).encode()],
    ids=["too deep", "half"],
)
def test_what_cannot_be_read_is_no_answer(content: bytes) -> None:
    with pytest.raises(NotAnAnswer, match="not the answer that was asked for"):
        Prediction.read(Reply(200, {}, content))


def test_a_number_that_is_none_is_no_answer() -> None:
    body = {"prediction": "x", "confidence": 1, "probabilities": {}, "model": "m", "version": float("inf")}
    with pytest.raises(NotAnAnswer, match="OverflowError"):
        Prediction.read(Reply(200, {}, json.dumps(body).encode()))
