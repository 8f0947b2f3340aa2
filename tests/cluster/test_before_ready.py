"""Requests that come before anything is ready: held, answered in order once the gate opens, refused over the bound."""

import asyncio
import os
import signal
import time
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.client import Client, RequestError
from messages.ids import new_request_id
from messages.lifecycle import Heartbeat
from messages.subjects import Subjects
from messages.submit import Accepted, Answer, Delta, Done
from supervisor.drills.asking import stream_over_http
from supervisor.drills.records import Record
from tests.cluster.stage import address, down
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

HELD = 12


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One slot a role; each engine takes one request at a time, and at most a dozen are held."""
    config = simulated(prefill={"capacity": 1}, decode={"capacity": 1})
    config["models"][0] |= {"limits": {"queued": HELD, "retry_after": 3.0}, "simulated": {"load": 1.0, "itl": 0.001}}
    made = Cluster(tmp_path, config)
    try:
        yield made
        down(made)
    finally:
        made.close()


class Listener(Client):
    """A client that notes in which order its requests were accepted, by their ids."""

    accepted: list[str]

    async def _on_answer(self, msg: Msg) -> None:
        answer: Answer = codec.msgpack_decoder(Answer).decode(msg.data)
        if isinstance(answer, Accepted):
            self.accepted.append(answer.id)
        await super()._on_answer(msg)


class Asking:
    """One request over NATS."""

    def __init__(self, client: Client, number: int) -> None:
        self.id = new_request_id()
        self.first = 0.0
        self.answers: list[Delta | Done] = []
        prompt = f"number {number}"
        self._stream = client.completion("demo", prompt, id=self.id, max_tokens=5, temperature=0.0, timeout=60.0)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for answer in self._stream:
            self.first = self.first or time.monotonic()
            self.answers.append(answer)


class Queue:
    """How many requests the processor holds, as its heartbeats tell."""

    def __init__(self) -> None:
        self._held = 0
        self._beat = asyncio.Event()

    async def hear(self, msg: Msg) -> None:
        """Take in a heartbeat."""
        self._held = codec.from_json(msg.data, Heartbeat).queued
        self._beat.set()

    async def until(self, count: int) -> None:
        """Wait until so many are held."""
        async with asyncio.timeout(10):
            while self._held != count:
                self._beat.clear()
                await self._beat.wait()


async def test_what_is_asked_before_the_gate_opens_is_answered_in_order_when_it_does(cluster: Cluster) -> None:
    await to_thread(cluster.up, ready=False)
    await to_thread(cluster.log.until, "demo-decode-0#1 started", 15)
    decode = (await to_thread(cluster.record, "demo-decode-0")).pid
    os.kill(decode, signal.SIGSTOP)
    await to_thread(cluster.log.until, "demo-processor-0#1 ready", 15)
    there = await to_thread(address, cluster)
    queue, bus = Queue(), await Bus.connect(there.nats, name="test", wait=5)
    await bus.subscribe(Subjects().heartbeat("processor", "demo-processor-0"), queue.hear)
    async with Listener(there.nats) as troupe:
        troupe.accepted = []
        held = [Asking(troupe, number) for number in range(HELD - 1)]
        await queue.until(HELD - 1)
        held_by_http = Record(new_request_id(), "http", HELD, time.monotonic(), 60)
        body: dict[str, object] = {"model": "demo", "prompt": "the last", "max_tokens": 5, "stream": True}
        last = asyncio.create_task(stream_over_http(there.http["demo"], body, held_by_http))
        await queue.until(HELD)
        with pytest.raises(RequestError) as refused:
            [_ async for _ in troupe.completion("demo", "one too many")]
        assert (refused.value.code, refused.value.retry_after) == (503, 3.0)
        assert "the gate is closed" in refused.value.message
        over = Record(new_request_id(), "http", HELD, time.monotonic(), 60)
        await stream_over_http(there.http["demo"], body, over)
        assert (over.code, over.retry_after) == (503, 3.0)
        os.kill(decode, signal.SIGCONT)
        async with asyncio.timeout(30):
            await asyncio.gather(*(asking.task for asking in held), last)
    await bus.close()
    assert all(isinstance(asking.answers[-1], Done) for asking in held)
    order = sorted(held, key=lambda asking: asking.first)
    assert [asking.id for asking in order] == troupe.accepted
    assert held_by_http.outcome == "done"
    assert held_by_http.pieces[0].at > order[-1].first


async def test_a_client_may_wait_for_a_cluster_of_which_only_the_bus_is_there(cluster: Cluster) -> None:
    """Asked before there is a processor: an error at once, or patience, as the client wishes."""
    await to_thread(cluster.up, ready=False)
    await to_thread(cluster.log.until, "demo-prefill-0#1 started", 15)
    there = await to_thread(address, cluster)
    async with Client(there.nats, wait=True) as patient:
        asking = Asking(patient, 1)
        async with asyncio.timeout(30):
            await asking.task
    assert isinstance(asking.answers[-1], Done)
