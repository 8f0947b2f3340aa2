"""A processor on a stage of its own, with the gate open."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import NatsServer
from tests.processor.stage import Stage, raised


@pytest.fixture
async def stage(nats_server: NatsServer) -> AsyncIterator[Stage]:
    """An aggregated cast: processor and decode."""
    async with raised(nats_server.url) as stage:
        await stage.gate(True)
        yield stage


@pytest.fixture
async def pair(nats_server: NatsServer) -> AsyncIterator[Stage]:
    """A cast with prefill and decode apart."""
    async with raised(nats_server.url, prefill=True) as stage:
        await stage.gate(True)
        yield stage
