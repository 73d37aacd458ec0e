"""What every test lives with."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from patience import PATIENCE_S

# A property holds or it does not: on a machine that others keep busy, an example may take seconds and be right.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["fault_table", "pytester", "time_left"]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "models"
"""The classifier alone, for patient callers: most tests need one model, and every server that they start would load
all of `models/`."""


@pytest.fixture(autouse=True)
def loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fail a test that sleeps, or reads a file or a socket, on the event loop."""
    if request.node.get_closest_marker("may_block"):
        yield None
        return
    with blockbuster_ctx("isocenter") as guard:
        yield guard


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on the ISOCENTER_* variables of whoever runs them."""
    for name in list(os.environ):
        if name.startswith("ISOCENTER_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def servers_elsewhere_may_be_slow() -> Iterator[None]:
    """No test is about how soon a model server answers small questions; the 2 s of the runtime may be over here."""
    with pytest.MonkeyPatch.context() as patch:
        for transport in ("http", "grpc"):
            patch.setattr(f"isocenter.runtimes.triton_{transport}.CONNECT_TIMEOUT_S", PATIENCE_S)
        yield


@pytest.fixture(scope="session", autouse=True)
def disks_may_be_slow() -> Iterator[None]:
    """Who writes jobs waits for others who do, however long a disk takes; the 2 s of the product may be over here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isocenter.serving.jobs.database._BUSY_S", PATIENCE_S)
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of third-party files, or a skip that names it."""
    folder = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no third-party test data at {folder.name}: set TEST_DATA_DIR")
    return folder
