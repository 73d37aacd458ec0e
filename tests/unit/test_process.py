"""What a process asks of the system."""

import resource
import sys

import pytest

from isocenter.process import connections_possible


@pytest.mark.parametrize(
    ("files", "connections"),
    [(65_536, 65_280), (1_024, 768), (300, 150), (64, 32), (1, 1), (resource.RLIM_INFINITY, sys.maxsize)],
)
def test_connections_leave_files_for_what_else_is_opened(
    monkeypatch: pytest.MonkeyPatch, files: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connections_possible() == connections
