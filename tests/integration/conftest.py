"""What the tests of a whole service share."""

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from isocenter.app import Composition
from patience import PATIENCE_S


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: Composition) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of a module's `service`, without a socket between them."""
    transport = httpx.ASGITransport(service.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
        yield client
