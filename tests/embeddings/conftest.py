"""An embedding model's processor on a stage of its own, with the gate open."""

from collections.abc import AsyncIterator

import pytest

from tests.conftest import NatsServer
from tests.embeddings.stage import Stage, raised


@pytest.fixture
async def stage(nats_server: NatsServer) -> AsyncIterator[Stage]:
    """A processor that lets vectors be cut, and no encoder yet."""
    async with raised(nats_server.url, embedding={"dimensions": "any"}, limits={"inputs": 100}) as stage:
        await stage.gate(True)
        yield stage
