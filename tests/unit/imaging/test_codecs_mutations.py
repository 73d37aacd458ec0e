"""Whatever the bytes are: an image or a typed refusal, no warning, no crash, little memory."""

import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from isocenter.core.errors import BadInput
from isocenter.imaging.codecs.raster import decode, decode_reference
from isocenter.imaging.image import RasterImage
from isocenter.imaging.limits import ImageLimits
from mutations import lies, mutate, mutated_files, originals

LIMITS = ImageLimits()
FILES = 600
MOST_EXTRA_BYTES = 300 * 2**20


def outcome(data: bytes) -> RasterImage | str:
    try:
        return decode(data, limits=LIMITS)
    except BadInput as refusal:
        return refusal.code


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_mutated_files_are_read_or_refused_by_type_in_bounded_memory() -> None:
    files = list(mutated_files(FILES, 11))
    before = peak_bytes()
    outcomes = [outcome(data) for _, data in files]
    read = sum(isinstance(found, RasterImage) for found in outcomes)
    assert 0 < read < FILES / 2
    assert peak_bytes() - before < MOST_EXTRA_BYTES


@pytest.mark.parametrize(("name", "data"), [pytest.param(*case, id=case[0]) for case in lies(1)])
def test_no_lie_gets_through_untyped(name: str, data: bytes) -> None:
    outcome(data)


def test_what_both_decoders_read_of_damaged_files_is_the_same() -> None:
    for name, data in mutated_files(200, 12):
        fast = outcome(data)
        try:
            reference: RasterImage | str = decode_reference(data, limits=LIMITS)
        except BadInput as refusal:
            reference = refusal.code
        if isinstance(fast, str) or isinstance(reference, str):
            assert isinstance(fast, str), name
            assert isinstance(reference, str), name
        else:
            assert np.array_equal(fast.pixels, reference.pixels), name


def test_threads_do_not_disturb_each_other() -> None:
    files = [data for _, data in mutated_files(120, 13)]
    alone = [outcome(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(outcome, files))
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
        else:
            assert np.array_equal(one.pixels, other.pixels)


def test_the_same_seed_gives_the_same_files() -> None:
    assert list(mutated_files(30, 5)) == list(mutated_files(30, 5))
    assert list(mutated_files(30, 5)) != list(mutated_files(30, 6))
    assert mutate(np.random.default_rng(1), originals(1)[0][1]) == mutate(np.random.default_rng(1), originals(1)[0][1])
