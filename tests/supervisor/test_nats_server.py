"""The embedded NATS server as the next supervisor finds it."""

from asyncio import to_thread
from pathlib import Path

import msgspec
import pytest

from messages.config import Nats
from supervisor import state
from supervisor.nats_server import NatsServer
from supervisor.state import ProcessRecord

pytestmark = pytest.mark.nats


async def test_one_that_was_just_being_started_is_adopted_with_its_port(tmp_path: Path) -> None:
    """Its starter was killed before it knew the port: a second server on the same store would ruin it."""
    first, second = (NatsServer(tmp_path, Nats(), "troupe") for _ in range(2))
    await first.start()
    try:
        record = await to_thread(state.read, tmp_path / "process.json", ProcessRecord)
        assert record is not None
        await to_thread(state.write, tmp_path / "process.json", msgspec.structs.replace(record, port=0))
        assert await second.start()
        assert (second.pid, second.port) == (first.pid, first.port)
    finally:
        await second.stop()
        await first.stop()
