"""What a processor takes at most, each bound with an error of its own at either door; long prompts keep nobody up."""

import asyncio
import time
from typing import Any

import pytest

from messages.submit import Error
from tests.conftest import NatsServer
from tests.processor.stage import Stage, raised

pytestmark = pytest.mark.nats

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
LONG: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "word " * 2_000}], "max_tokens": 1}


async def both(stage: Stage, body: dict[str, Any]) -> list[tuple[int, str, float]]:
    """Ask at both doors; the code, the message and the time to come again of each refusal."""
    last = await (await stage.submit("chat", dict(body))).last()
    assert isinstance(last, Error), last
    status, told, headers = await stage.post("/v1/chat/completions", body)
    return [
        (last.code, last.message, last.retry_after or 0.0),
        (status, told["error"]["message"], float(headers.get("Retry-After", 0))),
    ]


async def test_requests_in_flight_are_bounded(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"in_flight": 1, "retry_after": 3.0}) as stage:
        await stage.gate(True)
        await stage.gpu("decode")
        first = await stage.submit("chat", dict(CHAT))
        await first.accepted()
        for code, message, again in await both(stage, CHAT):
            assert (code, again) == (429, 3.0)
            assert message == "1 requests are in flight here, and no more may be"


@pytest.mark.parametrize(("is_open", "wanted"), [(False, 503), (True, 429)])
async def test_requests_that_wait_are_bounded(nats_server: NatsServer, is_open: bool, wanted: int) -> None:
    async with raised(nats_server.url, limits={"queued": 1, "retry_after": 3.0}) as stage:
        await stage.gate(is_open)
        await stage.gpu("decode", capacity=1)
        for _ in range(2 if is_open else 1):
            await (await stage.submit("chat", dict(CHAT))).accepted()
        for code, message, again in await both(stage, CHAT):
            assert (code, again) == (wanted, 3.0)
            assert "1 requests wait already, and no more than 1 may" in message


async def test_a_body_is_bounded(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"body_bytes": 2_000}) as stage:
        for code, message, _ in await both(stage, LONG):
            assert code == 413
            assert "at most 2000 are taken" in message


async def test_the_bodies_of_a_door_are_bounded_together(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"held_bytes": 4_000, "retry_after": 3.0}) as stage:
        await stage.gate(True)
        for (code, message, again), door in zip(await both(stage, LONG), ("NATS", "HTTP"), strict=True):
            assert (code, again) == (429, 3.0)
            assert f"at the {door} door already" in message
            assert "more than 4000" in message
        assert not stage.service.has("")
        await stage.gpu("decode")
        await (await stage.submit("chat", dict(CHAT))).accepted()


@pytest.mark.parametrize("door", ["nats", "http"])
async def test_long_prompts_are_tokenised_off_the_loop(nats_server: NatsServer, door: str) -> None:
    """While prompts of half a megabyte are made, the loop's own turns come on time."""
    long = {"model": "demo", "messages": [{"role": "user", "content": "some words \u4e16 " * 40_000}]}
    async with raised(nats_server.url) as stage:
        encode, inside = stage.tokenizer.encode, []

        def slowly(text: str, *, special: bool) -> list[int]:
            time.sleep(0.3)
            inside.append(time.monotonic())
            return encode(text[:20_000], special=special)

        stage.tokenizer.encode = slowly  # type: ignore[method-assign]
        refused: asyncio.Future[Any]
        if door == "nats":
            talk = await stage.submit("chat", long)
            refused = asyncio.ensure_future(talk.last())
        else:
            refused = asyncio.ensure_future(stage.post("/v1/chat/completions", long))
        turns = 0
        while not refused.done():
            await asyncio.sleep(0.005)
            turns += not inside
        await refused
        assert inside and turns >= 10
