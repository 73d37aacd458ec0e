"""A process that is asked: what it answers, and what becomes of one that never does."""

from pathlib import Path

import pytest

from asked_process import Refused, asked_process

_SCRIPT = """
import json, sys, threading
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "never":
        threading.Event().wait()
    print(json.dumps({"error": "no"} if asked["do"] == "fail" else asked), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "script.py").write_text(_SCRIPT)
    return str(tmp_path / "script.py")


def test_it_answers_what_it_is_asked_and_refuses_in_its_own_words(script: str) -> None:
    with asked_process(script, {}) as one:
        assert one.ask("add", number=2) == {"do": "add", "number": 2}
        with pytest.raises(Refused, match="no"):
            one.ask("fail")


def test_one_that_takes_too_long_is_ended_and_that_is_said(script: str) -> None:
    with asked_process(script, {}) as one:
        with pytest.raises(Refused, match=r"not done after 0\.05 s"):
            one.ask("never", bound_s=0.05)
        with pytest.raises(Refused):
            one.ask("add")
