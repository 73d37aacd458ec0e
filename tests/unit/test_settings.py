"""Settings are read once, and a typo is an error."""

from pathlib import Path

import pytest

from isocenter.core.errors import BadSettings
from isocenter.settings import known_variables, load_settings


def test_a_group_is_set_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HTTP__PORT", "9000")

    assert load_settings().http.port == 9000
    assert load_settings().http.host == "127.0.0.1"


def test_what_is_given_wins_over_the_environment_and_leaves_the_rest_of_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ISOCENTER_HTTP__PORT", "9000")
    monkeypatch.setenv("ISOCENTER_HTTP__HOST", "127.0.0.2")

    settings = load_settings(http={"port": 9001})

    assert (settings.http.host, settings.http.port) == ("127.0.0.2", 9001)


def test_a_misspelt_variable_is_refused_with_the_right_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HTTP__PROT", "9000")

    with pytest.raises(BadSettings, match="ISOCENTER_HTTP__PROT; did you mean ISOCENTER_HTTP__PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ISOCENTER_HTTP__PORT", "70000"),
        ("ISOCENTER_DECODE__THREADS", "0"),
        ("ISOCENTER_LOG_LEVEL", "loud"),
        ("ISOCENTER_LIMITS__MAX_BYTES", "many"),
        ("ISOCENTER_HTTP__HOST", ""),  # a socket would listen on every address
        ("ISOCENTER_SCANS", "/data/scans"),  # a group as a whole, and no JSON
    ],
)
def test_a_value_out_of_range_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(BadSettings, match=name):
        load_settings()


def test_every_variable_is_listed_once() -> None:
    names = known_variables()

    assert len(set(names)) == len(names)
    assert "ISOCENTER_DRAIN__LINGER_S" in names


def test_roots_of_scans_are_separated_like_a_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().scans.roots == ()
    monkeypatch.setenv("ISOCENTER_SCANS__ROOTS", "/scans/a:/scans/b")
    assert load_settings().scans.roots == (Path("/scans/a"), Path("/scans/b"))
    assert load_settings(scans={"roots": ["/scans/c"]}).scans.roots == (Path("/scans/c"),)
