"""Which format is written: the name that is given, else what the caller accepts most, else JSON."""

import pytest

from isocenter.api.http.segment import format_in
from isocenter.core.errors import BadValue


@pytest.mark.parametrize(
    ("named", "accept", "meant"),
    [
        pytest.param(None, None, ("json", False), id="nothing is said"),
        pytest.param(None, b"*/*", ("json", False), id="anything"),
        pytest.param(None, b"text/html", ("json", False), id="only what is not written"),
        pytest.param(None, b"text/html, application/geo+json;q=0.1", ("geojson", False), id="what is written of it"),
        pytest.param(None, b"application/json;q=0.2, image/png", ("labels", False), id="what is wanted more"),
        pytest.param(None, b"image/png, image/tiff", ("labels", False), id="the first of equals"),
        pytest.param(None, b"IMAGE/TIFF ; q=0.4", ("labels", True), id="any case, spaces"),
        pytest.param(None, b"image/png;q=0", ("json", False), id="not at all"),
        pytest.param(None, b"image/png;q=much", ("json", False), id="a weight that is none"),
        pytest.param("overlay", b"application/json", ("overlay", False), id="the name wins"),
        pytest.param("GeoJSON", None, ("geojson", False), id="any case"),
        pytest.param("coco-rle", None, ("coco-rle", False), id="run lengths"),
        pytest.param("labels", b"image/tiff", ("labels", True), id="labels as TIFF"),
        pytest.param("json", b"image/tiff", ("json", False), id="TIFF is of labels"),
    ],
)
def test_the_format_that_is_meant(named: str | None, accept: bytes | None, meant: tuple[str, bool]) -> None:
    assert format_in(named, accept) == meant


def test_a_format_that_is_not_written_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadValue, match="geojson") as caught:
        format_in("svg", None)
    assert "overlay" in str(caught.value.details["formats"])
