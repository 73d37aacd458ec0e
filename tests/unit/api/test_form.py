"""Forms with several files: what is a text, what is a file, and what is refused."""

import pytest

from isocenter.api.http.form import Form, FormFile, is_form, read_form
from isocenter.api.http.parts import FormReader, Part
from isocenter.core.errors import BadRequest

TYPE = b"multipart/form-data; boundary=b"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"


def read(*parts: bytes, content_type: bytes = TYPE) -> Form:
    body = b"".join(parts) + b"--b--\r\n"
    return read_form(body, content_type, file_fields=("file", "files"), text_fields=("model", "threshold"))


def test_files_keep_their_order_and_names_and_texts_are_stripped() -> None:
    form = read(
        part("files", b"1", "a.png"), part("model", b" hrnet\n"), part("file", b"2"), part("files", b"", "ä.png")
    )

    assert form.files == [FormFile("a.png", b"1"), FormFile("", b"2"), FormFile("ä.png", b"")]
    assert form.texts == {"model": "hrnet"}
    assert form.others == []


def test_a_text_that_is_sent_as_a_file_is_a_text() -> None:
    # As `requests` writes what is handed to it in `files`.
    assert read(part("threshold", b"0.95", "threshold"), part("file", b"1")).texts == {"threshold": "0.95"}


def test_fields_that_nobody_knows_are_named_whatever_they_hold() -> None:
    form = read(part("tag", b"a"), part("tag", b"b"), part("notes", b"x" * 1500), part("raw", b"\xff"))

    assert (form.others, form.texts, form.files) == (["tag", "tag", "notes", "raw"], {}, [])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b'filename="\xc3\xa4.png"', "ä.png"),
        (b'filename="\xe4.png"', "ä.png"),
        (b"filename*=UTF-8''%C3%A4%20b.png", "ä b.png"),
        (b"filename*=latin-1'de'%E4.png", "ä.png"),
        (b"filename=\"a.png\"; filename*=UTF-8''%C3%A4.png", "a.png"),
        (b"filename*=nonsense''a.png", "a.png"),
        (b"filename*=UTF-8", ""),
        (b"filename*=idna''a%ff%ff", "a%ff%ff"),
        (b"filename*=punycode''%99", "%99"),
        (b"filename*=utf-7''%2B2AA-", "%2B2AA-"),
    ],
)
def test_a_file_name_is_read_as_it_is_written(written: bytes, name: str) -> None:
    form = read(b'--b\r\nContent-Disposition: form-data; name="file"; ' + written + b"\r\n\r\n1\r\n")

    assert form.files == [FormFile(name, b"1")]


def test_a_name_is_no_file_name() -> None:
    named = b"--b\r\nContent-Disposition: form-data; name=\"model; filename*=UTF-8''evil\"\r\n\r\n1\r\n--b--\r\n"

    assert [*FormReader("b", max_parts=1).parts(named)] == [Part("model; filename*=UTF-8''evil", None, b"1")]


def test_more_parts_than_a_form_may_have_are_refused_with_the_limit() -> None:
    with pytest.raises(BadRequest, match="more than 4096 parts") as caught:
        read(*[part("tag", b"")] * 4097)
    assert caught.value.details == {"limit": 4096}


def test_a_file_that_nobody_asked_for_is_named_and_not_kept() -> None:
    form = read(part("mask", b"\xff" * 5000, "m.png"), part("file", b"1"))

    assert (form.others, len(form.files), form.texts) == (["mask"], 1, {})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        pytest.param([part("model", b"a"), part("model", b"b")], "given twice", id="a text twice"),
        pytest.param([part("model", b"x" * 1025)], "1025 bytes, a text may have 1024", id="a long text"),
        pytest.param([part("model", b"\xff")], "not UTF-8", id="no UTF-8"),
        pytest.param([b"--b\r\nContent-Disposition: form-data\r\n\r\n\r\n"], r"malformed: [^(]+$", id="no name"),
        pytest.param([b"--b\r\nContent-Disp"], "malformed", id="cut off"),
        pytest.param([b"hello"], "malformed", id="no form at all"),
    ],
)
def test_what_is_malformed_is_refused(parts: list[bytes], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        read(*parts)


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(BadRequest, match="without a boundary"):
        read(part("file", b"1"), content_type=b"multipart/form-data")


@pytest.mark.parametrize(
    ("content_type", "form"),
    [(TYPE, True), (b'Multipart/Form-Data; boundary="b"', True), (b"image/png", False), (b"", False), (None, False)],
)
def test_what_is_a_form(content_type: bytes | None, form: bool) -> None:
    assert is_form(content_type) is form
