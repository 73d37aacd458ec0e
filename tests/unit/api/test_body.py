"""A request's bytes become one image's bytes, or a typed refusal."""

from collections.abc import AsyncIterator

import pytest

from isocenter.api.http.body import check_length, read_image
from isocenter.core.errors import BadRequest, IsocenterError, MissingImage, TooManyBytes

LIMIT = 1000
FORM = "multipart/form-data; boundary=B"


async def chunked(body: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def part(name: str, content: bytes, headers: str = "") -> bytes:
    return (
        b'--B\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"; filename="x.png"\r\n'
        + headers.encode()
        + b"\r\n"
        + content
        + b"\r\n"
    )


END = b"--B--\r\n"


@pytest.mark.parametrize("field", ["image", "file"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_either_field_holds_the_image_however_the_body_arrives(field: str, size: int) -> None:
    content = bytes(range(256)) + b"\r\n--other\r\n"
    body = part("note", b"hello") + part(field, content, "Content-Type: image/png\r\n") + END

    assert await read_image(chunked(body, size), FORM, max_bytes=LIMIT) == content


@pytest.mark.parametrize(
    "content_type",
    [None, "", "image/png", "application/octet-stream", "application/x-www-form-urlencoded"],
)
async def test_a_body_that_is_no_form_is_the_image_itself(content_type: str | None) -> None:
    assert await read_image(chunked(b"pixels"), content_type, max_bytes=LIMIT) == b"pixels"


@pytest.mark.parametrize(
    ("content_type", "body", "refusal"),
    [
        pytest.param("multipart/form-data", part("image", b"x") + END, BadRequest, id="no boundary"),
        pytest.param(FORM, part("image", b"x"), BadRequest, id="cut off"),
        pytest.param(FORM, b"", BadRequest, id="empty form"),
        pytest.param(FORM, b"garbage", BadRequest, id="no form at all"),
        pytest.param(FORM, part("image", b"x") + part("file", b"y") + END, BadRequest, id="two images"),
        pytest.param(FORM, part("picture", b"x") + END, MissingImage, id="another field"),
        pytest.param(FORM, END, MissingImage, id="no field"),
        pytest.param(FORM, part("image", b"") + END, MissingImage, id="empty field"),
        pytest.param("image/png", b"", MissingImage, id="empty body"),
        pytest.param("image/png", b"x" * (LIMIT + 1), TooManyBytes, id="raw body too large"),
        pytest.param(FORM, part("image", b"x" * (LIMIT + 1)) + END, TooManyBytes, id="field too large"),
        pytest.param(FORM, b"".join(part(f"f{n}", b"") for n in range(20)) + END, BadRequest, id="too many parts"),
    ],
)
async def test_a_body_without_exactly_one_image_is_refused(
    content_type: str, body: bytes, refusal: type[IsocenterError]
) -> None:
    with pytest.raises(refusal):
        await read_image(chunked(body, 1 << 16), content_type, max_bytes=LIMIT)


async def test_reading_stops_at_the_limit_and_not_at_the_end() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    with pytest.raises(TooManyBytes) as refusal:
        await read_image(endless(), "image/png", max_bytes=LIMIT)

    assert taken <= 2 << 16
    assert refusal.value.details["limit"] == LIMIT


@pytest.mark.parametrize("declared", ["-1", "abc", "1e3", "+5", "٣"])
def test_a_length_that_is_no_number_is_refused(declared: str) -> None:
    with pytest.raises(BadRequest):
        check_length(declared, LIMIT)


def test_a_declared_length_over_the_limit_is_refused_with_both_figures() -> None:
    with pytest.raises(TooManyBytes, match="limit for an image is 1000") as refusal:
        check_length("10000000", LIMIT)

    assert refusal.value.details == {"bytes": 10_000_000, "limit": LIMIT}


@pytest.mark.parametrize("declared", [None, "0", "1000"])
def test_a_length_within_the_limit_passes(declared: str | None) -> None:
    check_length(declared, LIMIT)
