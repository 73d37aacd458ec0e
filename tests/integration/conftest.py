"""What the tests of a whole service share."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio

from http_stage import LOOPS, Run, runner_on
from isocenter.api.http import protocol
from isocenter.app import Composition
from isocenter.measure.recent import Recent
from patience import PATIENCE_S


@pytest.fixture(scope="module", autouse=True)
def statistics_forget_nothing() -> Iterator[None]:
    """What a test counts is not a minute old before it looks, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        assert Recent.__init__.__kwdefaults__ is not None
        patch.setitem(Recent.__init__.__kwdefaults__, "slot_s", 3600.0)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: Composition) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a module's `service`, without a socket between them."""
    transport = httpx.ASGITransport(service.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on either event loop."""
    return runner_on(request.param)


@pytest.fixture
def nobody_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sees is not the end of the time that a connection lingers, but where it is said so."""
    monkeypatch.setattr(protocol, "_LINGER_S", 3600.0)
