"""Bytes, a path or an array come in; anything else, and what cannot be read, is refused by name."""

from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadRequest, IsocenterError, MissingImage, TooManyBytes
from isocenter.serving.given import bytes_or_pixels


@pytest.mark.parametrize("given", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
async def test_bytes_of_any_kind_are_bytes(given: object) -> None:
    assert await bytes_or_pixels(given, 10) == b"abc"


async def test_a_path_is_read_on_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "slice.png"
    file.write_bytes(b"abc")

    assert await bytes_or_pixels(file, 10) == await bytes_or_pixels(str(file), 10) == b"abc"


async def test_an_array_stays_what_it_is() -> None:
    pixels = np.zeros((2, 2), np.uint8)

    assert await bytes_or_pixels(pixels, 1) is pixels


@pytest.mark.parametrize(
    ("name", "kind"),
    [("absent.png", MissingImage), (".", MissingImage), ("empty.png", MissingImage), ("large.png", TooManyBytes)],
)
async def test_a_file_that_is_no_image_is_refused_without_its_name(
    tmp_path: Path, name: str, kind: type[IsocenterError]
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "large.png").write_bytes(b"x" * 5000)

    with pytest.raises(kind) as refused:
        await bytes_or_pixels(tmp_path / name, 4999)

    assert name == "." or name not in refused.value.message


async def test_no_bytes_are_no_image() -> None:
    with pytest.raises(MissingImage):
        await bytes_or_pixels(b"", 10)


@pytest.mark.parametrize("given", [None, 3, [b"abc"], [[1, 2], [3, 4]]])
async def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(BadRequest, match="numpy array"):
        await bytes_or_pixels(given, 10)
