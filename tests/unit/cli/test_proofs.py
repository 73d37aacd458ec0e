"""Each proof on its own: one failure does not hide the next."""

import pytest

from builders import MANIFEST_DATA
from isocenter.cli.proofs import batching_in_words, odd_images, prove, timed_sizes
from isocenter.core.errors import BadManifest, UnknownModel
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import Manifest


def broken() -> ModelFolder:
    raise BadManifest("model.yaml: name: unknown key")


def test_without_a_manifest_nothing_else_can_be_tried() -> None:
    first, *others = prove(broken)
    assert (first.name, first.ok, first.code) == ("manifest", False, "bad_manifest")
    assert [proof.ok for proof in others] == [None] * 8
    assert {proof.summary for proof in others} == {"not tried: needs the manifest", "not tried: needs golden inputs"}


def test_a_model_that_is_not_there_has_no_proofs() -> None:
    def find() -> ModelFolder:
        raise UnknownModel("no model is called 'x'")

    with pytest.raises(UnknownModel):
        list(prove(find))


def test_odd_images_are_what_decoding_would_give() -> None:
    images = list(odd_images())
    assert {image.pixels.dtype.name for image in images} == {"uint8", "uint16"}
    assert {image.pixels.ndim for image in images} == {2, 3}
    for image in images:
        assert image.pixels.shape[:2] == (image.source.height_px, image.source.width_px)


def test_the_sizes_that_are_timed_tell_the_story() -> None:
    batching = {"max_batch_size": 24, "preferred_batch_sizes": [6, 24]}
    assert timed_sizes(Manifest.model_validate({**MANIFEST_DATA, "batching": batching})) == [1, 2, 4, 6, 8, 16, 24]


def test_whether_batching_pays_is_said_in_words() -> None:
    assert batching_in_words({1: 0.010, 8: 0.020}).startswith("batching pays: 4.0 x")
    assert batching_in_words({1: 0.010, 8: 0.078}).startswith("batching does not pay")
