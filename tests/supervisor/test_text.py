"""`text: true` in a whole simulated cluster: chats in, texts out, the same at prefill and decode, deaths included."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from messages.supervise import Status
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 12}


async def ask(status: Status, **fields: Any) -> tuple[int, dict[str, Any]]:
    url = status.http["demo"].rstrip("/") + "/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=CHAT | fields) as answer:
        return answer.status, await answer.json()


def _until_busy(cluster: Cluster) -> None:
    """Wait until the slot that is to die has work, which takes two seconds to do."""
    deadline = time.monotonic() + 10
    while cluster.slot("demo-decode-0").in_flight == 0:
        assert time.monotonic() < deadline, "nothing reached demo-decode-0"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Prefill and two decodes, slow enough to be met at work."""
    configuration = simulated(decode={"count": 2})
    configuration["models"][0] |= {"text": True, "probe": {"idle": 0.5}, "simulated": {"itl": 0.05}}
    made = Cluster(tmp_path, configuration)
    try:
        made.up()
        yield made
    finally:
        made.close()


async def test_chats_are_answered_and_go_on_after_a_death(cluster: Cluster) -> None:
    status = await asyncio.to_thread(cluster.status)
    code, first = await ask(status)
    assert code == 200, first
    text = first["choices"][0]["message"]["content"]
    assert len(text.split()) == 12
    assert first["usage"]["prompt_tokens"] > 3
    code, again = await ask(status)
    assert (code, again["choices"][0]["message"]["content"]) == (200, text), "the same chat has the same ids"
    code, other = await ask(status, messages=[{"role": "user", "content": "four"}])
    assert (code, other["choices"][0]["message"]["content"] == text) == (200, False)
    stop = text.split()[4]
    code, cut = await ask(status, stop=stop)
    assert (code, cut["choices"][0]["message"]["content"]) == (200, text[: text.index(stop)])

    _, whole = await ask(status, max_tokens=100)
    running = [asyncio.create_task(ask(status, max_tokens=100)) for _ in range(6)]
    await asyncio.to_thread(_until_busy, cluster)
    await asyncio.to_thread(cluster.kill, "demo-decode-0")
    for code, answer in await asyncio.gather(*running):
        assert (code, answer["choices"][0]["message"]) == (200, whole["choices"][0]["message"])
        assert answer["usage"]["completion_tokens"] == 100
        assert answer["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
    async with asyncio.timeout(30):
        while True:
            slots = {slot.slot: slot for slot in (await asyncio.to_thread(cluster.status)).slots}
            probes = [slots[name].probe for name in ("demo-prefill-0", "demo-decode-0", "demo-decode-1")]
            if all(probe is not None and probe.result == "ok" for probe in probes):
                break
