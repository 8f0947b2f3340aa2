"""The proxy before NATS: it passes everything on, until a connection's name is one that is to be cut or slowed."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from messages.bus import Bus, NobodyThereError, SilentError
from messages.config import Nats
from supervisor.drills.proxy import Proxy
from tests.conftest import NatsServer, eventually

pytestmark = pytest.mark.nats


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    """A proxy before this test's server."""
    made = Proxy(nats_server.url)
    await made.open()
    yield made
    await made.close()


async def test_a_cut_connection_is_silent_both_ways_and_goes_on_when_it_is_mended(proxy: Proxy) -> None:
    heard: list[bytes] = []

    async def answer(msg: object) -> None:
        heard.append(msg.data)  # type: ignore[attr-defined]
        await far.publish(msg.reply, b"yes")  # type: ignore[attr-defined]

    far, near = [await Bus.connect(Nats(url=proxy.url), name=name, wait=5) for name in ("far", "near")]
    await far.subscribe("ask", answer)
    await far.flush()
    assert (await near.request("ask", b"1", timeout=5)).data == b"yes"
    assert sorted(connection.name for connection in proxy.connections) == ["far", "near"]
    assert proxy.cut(lambda name: name == "far") == 1
    with pytest.raises(SilentError):
        await near.request("ask", b"2", timeout=0.3)
    assert heard == [b"1"]
    # It notices by its own pings, and cannot come back.
    await eventually(lambda: far.down_since is not None, 10)
    await eventually(lambda: proxy.held_back > 0, 10)
    proxy.mend()
    await eventually(lambda: far.connected, 10)
    await far.flush()
    async with asyncio.timeout(10):
        while True:
            try:
                if (await near.request("ask", b"3", timeout=1)).data == b"yes":
                    break
            except (NobodyThereError, SilentError):
                continue
    await far.close()
    await near.close()


async def test_a_slowed_connection_is_late_by_as_much_both_ways_and_others_are_not(proxy: Proxy) -> None:
    slow, quick = [await Bus.connect(Nats(url=proxy.url), name=name, wait=5) for name in ("slow", "quick")]
    assert proxy.slow(lambda name: name == "slow", 0.2) == 1
    began = time.monotonic()
    await slow.flush()
    assert time.monotonic() - began >= 0.4
    # The other one's flush overtakes a slow one that was begun before it.
    late = asyncio.ensure_future(slow.flush())
    await asyncio.sleep(0)
    await quick.flush()
    assert not late.done()
    await late
    await slow.close()
    await quick.close()
