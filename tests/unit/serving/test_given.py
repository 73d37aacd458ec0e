"""Bytes, a path or an array come in; anything else, and what cannot be read, is refused by name."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.clock import SystemClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import BadRequest, DeadlineExceeded, IsocenterError, MissingImage, TooManyBytes
from isocenter.core.tensor import Array
from isocenter.serving.given import bytes_or_pixels
from patience import PATIENCE_S


async def taken(given: object, max_bytes: int) -> bytes | Array:
    return await bytes_or_pixels(given, max_bytes, deadline=Deadline.never(), clock=SystemClock())


@pytest.mark.parametrize("given", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
async def test_bytes_of_any_kind_are_bytes(given: object) -> None:
    assert await taken(given, 10) == b"abc"


async def test_a_path_is_read_on_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "slice.png"
    file.write_bytes(b"abc")

    assert await taken(file, 10) == await taken(str(file), 10) == b"abc"


async def test_an_array_stays_what_it_is() -> None:
    pixels = np.zeros((2, 2), np.uint8)

    assert await taken(pixels, 1) is pixels


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
        await taken(tmp_path / name, 4999)

    assert name == "." or name not in refused.value.message


async def test_what_is_no_plain_file_is_refused_before_anybody_waits_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)

    for given in (pipe, "/dev/zero"):
        with pytest.raises(MissingImage, match="no plain file"):
            await taken(given, 10)


@pytest.mark.parametrize("name", ["MUELLER\0.png", "\ud800MUELLER.png"])
async def test_a_path_that_can_be_none_is_refused_and_no_link_of_the_error_holds_it(name: str) -> None:
    with pytest.raises(MissingImage) as refused:
        await taken(name, 10)

    assert "MUELLER" not in refused.value.message
    assert refused.value.__cause__ is refused.value.__context__ is None


async def test_the_error_of_the_disk_is_not_chained_for_it_holds_the_name(tmp_path: Path) -> None:
    with pytest.raises(MissingImage, match="No such file") as refused:
        await taken(tmp_path / "MUELLER.png", 10)

    assert refused.value.__cause__ is refused.value.__context__ is None


async def test_nobody_waits_for_a_file_beyond_the_deadline(tmp_path: Path) -> None:
    file = tmp_path / "slice.png"
    file.write_bytes(b"abc")
    busy, clock, loop = threading.Event(), SystemClock(), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    held = loop.run_in_executor(None, busy.wait, PATIENCE_S)

    try:
        with pytest.raises(DeadlineExceeded, match="before the file was read"):
            await bytes_or_pixels(file, 10, deadline=Deadline.after(0.01, now_s=clock.now_s()), clock=clock)
    finally:
        busy.set()
        await held


async def test_no_bytes_are_no_image() -> None:
    with pytest.raises(MissingImage):
        await taken(b"", 10)


@pytest.mark.parametrize("given", [None, 3, [b"abc"], [[1, 2], [3, 4]]])
async def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(BadRequest, match="numpy array"):
        await taken(given, 10)
