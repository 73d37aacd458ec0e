"""What the tests themselves keep to."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

from conftest import MODELS, ROOT
from patience import PATIENCE_S

SHIPPED_AND_OURS = (ROOT / "models", MODELS)
BOUND = re.compile(r"\btimeout=[1-9]\d{1,2}\b|\.(?:wait|join|timeout)\([1-9]\d{0,2}(?:\.0)?\)")
"""A bound of seconds or minutes on something that is real, such as a process or a thread."""


def test_no_property_is_judged_by_the_clock() -> None:
    """Hypothesis fails an example that takes longer than 200 ms, unless it is told otherwise."""
    assert settings().deadline is None


def test_what_is_waited_for_has_the_one_patience() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if BOUND.search(line)
    ]
    assert not found


@pytest.mark.parametrize("line", ["run(command, timeout={})", "process.wait({})", "async with asyncio.timeout({}):"])
def test_a_bound_of_its_own_is_seen(line: str) -> None:
    assert BOUND.search(line.format(30))


def test_the_classifier_of_the_tests_is_the_one_that_is_shipped_but_for_its_patience() -> None:
    version = Path("brain-mri-classifier", "1")
    shipped, ours = (
        yaml.safe_load((models / version / "model.yaml").read_text("utf-8")) for models in SHIPPED_AND_OURS
    )

    assert ours == shipped | {"slo": shipped["slo"] | {"timeout_ms": 1e3 * PATIENCE_S}}
    for name in ("model.onnx", "golden"):
        assert (MODELS / version / name).resolve() == ROOT / "models" / version / name
