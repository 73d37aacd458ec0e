"""A request's bytes become one image's bytes, or a typed refusal."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message, Receive

from isocenter.api.http import body as module
from isocenter.api.http.body import check_length, image_in, receive_image
from isocenter.core.errors import Abandoned, BadRequest, IsocenterError, MissingImage, Overloaded, TooManyBytes
from isocenter.serving.budget import ByteBudget

LIMIT = 1000
FORM = "multipart/form-data; boundary=B"


async def chunked(body: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read_image(chunks: AsyncIterator[bytes], content_type: str | None, *, max_bytes: int) -> bytes:
    async def receive() -> Message:
        chunk = await anext(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    return await receive_image(receive, content_type.encode() if content_type else None, max_bytes=max_bytes)


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


def arriving(*chunks: bytes, left: bool = False) -> Receive:
    """What a server hands out: these chunks, and then the end or the caller's leaving."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if left else {"type": "http.request", "more_body": False})
    following = iter(messages)

    async def receive() -> Message:
        return next(following)

    return receive


async def test_a_caller_who_leaves_while_sending_is_no_bad_request() -> None:
    with pytest.raises(Abandoned):
        await receive_image(arriving(b"half of it", left=True), None, max_bytes=LIMIT)


async def test_a_body_in_one_piece_is_not_copied() -> None:
    sent = bytes(500)

    assert await receive_image(arriving(sent), None, max_bytes=LIMIT) is sent


async def test_a_body_without_a_length_is_booked_as_it_comes_and_refused_over_the_budget() -> None:
    budget = ByteBudget(100)

    with pytest.raises(Overloaded), budget.book() as booking:
        await receive_image(arriving(bytes(60), bytes(60)), None, max_bytes=LIMIT, booking=booking)

    assert budget.in_use_bytes == 0


ENDS = ["answered", "left", "never came", "too much"]


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.lists(st.integers(0, 40), max_size=4), st.booleans()), max_size=8))
async def test_whatever_becomes_of_bodies_the_budget_returns_to_zero(
    requests: list[tuple[str, list[int], bool]],
) -> None:
    budget = ByteBudget(100)

    async def ask(end: str, sizes: list[int], declares: bool) -> None:
        limit = -(64 << 10) if end == "too much" else LIMIT
        arrives = arriving(*(bytes(size) for size in sizes), left=end == "left")

        async def receive() -> Message:
            await asyncio.sleep(0)
            message = await arrives()
            if end == "never came" and not message.get("body"):
                await asyncio.Event().wait()
            assert budget.in_use_bytes <= 100
            return message

        with budget.book(sum(sizes) if declares else 0) as booking:
            await receive_image(receive, None, max_bytes=limit, booking=booking)

    tasks = [asyncio.create_task(ask(*request)) for request in requests]
    for _ in range(30):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)

    assert budget.in_use_bytes == 0
    assert all(end is None or isinstance(end, IsocenterError | asyncio.CancelledError) for end in ends)


BOUNDARY = "0f3c"
HEADS = {
    "httpx": 'Content-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png',
    "requests, bytes": 'Content-Disposition: form-data; name="image"; filename="image"',
    "curl": 'Content-Disposition: form-data; name="image"; filename="scan 7 (copy).png"\r\nContent-Type: image/png',
    "curl, no file": 'Content-Disposition: form-data; name="image"',
    "browser": 'Content-Disposition: form-data; name="file"; filename="blob"\r\nContent-Type: application/octet-stream',
    "aiohttp": 'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename="x.png"',
}
ODD_HEADS = [
    'Content-Disposition: form-data; name="picture"',
    "Content-Disposition: form-data; name=image",
    'content-disposition: form-data; name="image"',
    'Content-Disposition: attachment; name="image"',
    'Content-Disposition: form-data; name="image"\r\nContent-Length: 4',
    'Content-Disposition: form-data; name="image"; filename="a\\"b.png"',
    'Content-Disposition: form-data; name="image"; filename="%22.png"',
    'Content-Disposition: form-data; name="image"; filename="Jürgen.png"',
    'Content-Disposition: form-data; name="image"\r\n folded',
    'Content-Disposition: form-data; name="image"\r\nContent-Type: text/plain; charset=x',
    'Content-Disposition: form-data; name="image"\nContent-Type: image/png',
    'Content-Disposition: form-data; name="image"; filename="x"; name="picture"',
    "Content-Type: image/png",
    "",
]


def form(head: str, content: bytes, boundary: str = BOUNDARY) -> bytes:
    return f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()


@pytest.mark.parametrize("client", HEADS)
def test_the_forms_that_clients_send_need_no_parser(client: str) -> None:
    content = bytes(range(256)) + b"\r\n--other--\r\n"

    assert module._in_a_usual_form(form(HEADS[client], content), BOUNDARY.encode()) == content


def outcome(read: Callable[[], bytes]) -> bytes | tuple[str, str]:
    try:
        return read()
    except IsocenterError as refusal:
        return refusal.code, refusal.message


DELIMITERS = [b"\r\n--0f3c", b"\r\n--0f3c\r\n", b"\r\n--0f3c--"]
FRAGMENTS = [*DELIMITERS, b"\r\n", b"--", b"0f3c", b"\r\n\r\n", b"\n", b"pixels", b"\xff"]
PARTS = st.tuples(st.sampled_from([*HEADS.values(), *ODD_HEADS]), st.lists(st.sampled_from(FRAGMENTS), max_size=5))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    parts = draw(st.lists(PARTS, min_size=1, max_size=2) | st.lists(PARTS, min_size=1, max_size=1))
    body = b"".join(f"--0f3c\r\n{head}\r\n\r\n".encode() + b"".join(content) + b"\r\n" for head, content in parts)
    body += draw(st.sampled_from([b"--0f3c--\r\n", b"--0f3c--", b"--0f3c--\r\nafter", b"--0f3c-", b"--0f3c\r\n", b""]))
    if draw(st.booleans()):
        return body
    where = draw(st.integers(0, len(body)))
    return body[:where] + draw(st.sampled_from([*FRAGMENTS, b""])) + body[where + draw(st.integers(0, 3)) :]


@given(bodies(), st.booleans())
@example(form(HEADS["httpx"], b"x").replace(b"--0f3c\r\n", b"--0f3c--", 1), False)
@example(form(HEADS["httpx"], b"x").replace(b"\r\nx\r\n", b"\r\n", 1), False)
@example(form(ODD_HEADS[-3], b"x"), False)
def test_what_needs_no_parser_is_read_as_the_parser_reads_it(body: bytes, in_pieces: bool) -> None:
    def by_the_parser() -> bytes:
        image = module._in_any_form(body, BOUNDARY)
        if not image:
            raise MissingImage("the image is empty: 0 bytes")
        return image

    def by_us() -> bytes:
        content_type = b"multipart/form-data; boundary=0f3c"
        return image_in(bytearray(body) if in_pieces else body, content_type, max_bytes=1 << 20)

    assert outcome(by_us) == outcome(by_the_parser)


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="0f3c"',
        "Multipart/Form-Data; boundary=0f3c",
        "multipart/form-data;boundary=0f3c",
        "multipart/form-data; charset=utf-8; boundary=0f3c",
        "multipart/form-data; boundary=0f3c; charset=utf-8",
    ],
)
def test_a_content_type_written_otherwise_means_the_same(content_type: str) -> None:
    body = form(HEADS["httpx"], b"pixels")

    assert image_in(body, content_type.encode(), max_bytes=LIMIT) == b"pixels"


@pytest.mark.parametrize("declared", [b"-1", b"abc", b"1e3", b"+5", b"\xb2", b"", b"1_0"])
def test_a_length_that_is_no_number_is_refused(declared: bytes) -> None:
    with pytest.raises(BadRequest):
        check_length(declared, LIMIT)


def test_a_declared_length_over_the_limit_is_refused_with_both_figures() -> None:
    with pytest.raises(TooManyBytes, match="limit for an image is 1000") as refusal:
        check_length(b"10000000", LIMIT)

    assert refusal.value.details == {"bytes": 10_000_000, "limit": LIMIT}


@pytest.mark.parametrize(("declared", "length"), [(None, None), (b"0", 0), (b"1000", 1000)])
def test_a_length_within_the_limit_passes(declared: bytes | None, length: int | None) -> None:
    assert check_length(declared, LIMIT) == length
