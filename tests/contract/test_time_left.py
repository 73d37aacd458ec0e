"""On a machine that is too slow for all tests, those of single parts still run, and the others are named."""

import time

import pytest

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
