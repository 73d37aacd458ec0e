"""Tests for which a machine has no time left are left out, and counted at the end.

`make test TEST_MINUTES=70` says so in TESTS_END_AT, in seconds since 1970. Unit tests that are not slow go on for ten
minutes more, and everything runs where no end is given.
"""

import os
import time
from collections import Counter

import pytest

MORE_S = 600.0
LEFT_OUT = "left out: TEST_MINUTES are over"


def goes_on_for_s(item: pytest.Item) -> float:
    """How long after the end it is still begun: not, where others have tried the same parts one by one before."""
    several = "tests/unit/" not in item.path.as_posix()
    return 0.0 if several or item.get_closest_marker("slow") is not None else MORE_S


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no such test after the end."""
    end = os.environ.get("TESTS_END_AT")
    if end and time.time() >= float(end) + goes_on_for_s(item):
        pytest.skip(LEFT_OUT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many were left out, and where."""
    files = Counter(
        report.nodeid.partition("::")[0]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and LEFT_OUT in report.longrepr[2]
    )
    if not files:
        return
    terminalreporter.section("left out", red=True)
    terminalreporter.write_line(f"{files.total()} tests, for TEST_MINUTES were over. `make test` without it runs all.")
    for file, count in sorted(files.items()):
        terminalreporter.write_line(f"{count:6} {file}")
