"""On a machine that is too slow for all tests, those of single parts run first, and what is left out is named."""

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

FAST, SLOW = "def test_it() -> None: ...", "import pytest\n@pytest.mark.slow\ndef test_it() -> None: ..."


@pytest.fixture
def tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("TESTS_END_AT", raising=False)
    for file, text in {"unit/test_a.py": FAST, "unit/test_b.py": SLOW, "integration/test_c.py": FAST}.items():
        path = pytester.path / "tests" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return pytester


def ran(tests: pytest.Pytester) -> pytest.RunResult:
    return tests.runpytest_inprocess("-p", "time_left", "-p", "no:cacheprovider", "-W", "ignore")


def test_without_an_end_everything_runs(tests: pytest.Pytester) -> None:
    ran(tests).assert_outcomes(passed=3)


def test_before_the_end_everything_runs(tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_END_AT", str(int(time.time()) + 3600))

    ran(tests).assert_outcomes(passed=3)


def test_after_the_end_unit_tests_run_and_the_others_are_named(
    tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTS_END_AT", str(int(time.time()) - 1))

    result = ran(tests)

    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["2 tests, *", "*1 tests/integration/test_c.py", "*1 tests/unit/test_b.py"])


def test_ten_minutes_after_the_end_nothing_runs(tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_END_AT", str(int(time.time()) - 601))

    ran(tests).assert_outcomes(skipped=3)


def slow_tests(end: str) -> str:
    """What `make test-slow` would run."""
    asked = ["make", "--no-print-directory", "--old-file", ".venv/.dev", "PYTEST=echo pytest", "test-slow"]
    environ = {**os.environ, "TESTS_END_AT": end}
    return subprocess.run(asked, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout


def test_after_the_end_slow_tests_are_not_even_collected() -> None:
    assert slow_tests(str(int(time.time()) - 1)) == "The slow tests are left out: TEST_MINUTES are over.\n"


def test_without_an_end_and_before_it_slow_tests_run() -> None:
    for end in ("", str(int(time.time()) + 3600)):
        assert slow_tests(end) == "pytest -m slow and not gpu and not long tests\n"
