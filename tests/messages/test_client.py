"""The client library against a processor that loses messages: what is missing is asked for again, nothing twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus, error_headers
from messages.client import Client
from messages.lifecycle import Control
from messages.subjects import Subjects
from messages.submit import Accepted, Answer, Delta, Done, Error, Generate, Usage
from tests.conftest import NatsServer

pytestmark = pytest.mark.nats

SUBJECTS = Subjects()
SLOT = "demo-processor-0"


class Desk:
    """A processor of the test's own: takes submissions, answers what it is told to, and pings as it is told to."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.asked: asyncio.Queue[tuple[Generate, str]] = asyncio.Queue()
        self.has: set[str] = set()
        self.pings: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> None:
        await self.bus.subscribe(SUBJECTS.submit("demo", "generate"), self._on_submit)
        await self.bus.subscribe(SUBJECTS.control(SLOT, "ping"), self._on_ping)
        await self.bus.flush()

    async def _on_submit(self, msg: Msg) -> None:
        self.asked.put_nowait((codec.from_msgpack(msg.data, Generate), msg.reply))

    async def _on_ping(self, msg: Msg) -> None:
        request = codec.from_json(msg.data, Control).request
        here = request in self.has
        self.pings.put_nowait(request)
        await self.bus.publish(msg.reply, b"{}", headers=None if here else error_headers(404, "not here"))

    async def got(self) -> tuple[Generate, str]:
        """Wait for the next submission."""
        async with asyncio.timeout(5):
            return await self.asked.get()

    async def say(self, reply: str, *answers: Answer) -> None:
        """Answer."""
        for answer in answers:
            await self.bus.publish(reply, codec.to_msgpack(answer))


@pytest.fixture
async def desk(bus: Bus) -> Desk:
    """A processor, listening."""
    made = Desk(bus)
    await made.open()
    return made


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client, connected."""
    async with Client(nats_server.url) as made:
        yield made


def accepted(id: str, attempt: int = 1) -> Accepted:
    return Accepted(id=id, attempt=attempt, owner=f"{SLOT}-g1")


def done(id: str, tokens: int, attempt: int = 1) -> Done:
    return Done(id=id, attempt=attempt, finish_reason="length", usage=Usage(prompt_tokens=1, completion_tokens=tokens))


def delta(id: str, position: int, *tokens: int, attempt: int = 1) -> Delta:
    return Delta(id=id, attempt=attempt, position=position, token_ids=list(tokens))


async def whole(client: Client) -> list[Delta | Done]:
    async with asyncio.timeout(10):
        return [answer async for answer in client.generate("demo", [1], max_tokens=9)]


def tokens_of(answers: list[Delta | Done]) -> list[int]:
    return [token for answer in answers if isinstance(answer, Delta) for token in answer.token_ids]


async def test_a_lost_delta_is_asked_for_again(desk: Desk, client: Client) -> None:
    answers = asyncio.ensure_future(whole(client))
    first, reply = await desk.got()
    await desk.say(reply, accepted(first.id), delta(first.id, 0, 10), delta(first.id, 2, 12))
    again, reply = await desk.got()
    assert again.id == first.id
    assert again.resume is not None
    assert (again.resume.attempt, again.resume.token_ids) == (1, [10])
    await desk.say(reply, delta(first.id, 3, 13), done(first.id, 4))
    await desk.say(reply, accepted(first.id, 2), delta(first.id, 1, 11, 12, 13, attempt=2), done(first.id, 4, 2))
    came = await answers
    assert tokens_of(came) == [10, 11, 12, 13]
    assert [answer.attempt for answer in came if isinstance(answer, Done)] == [2]


async def test_a_last_word_after_lost_deltas_is_not_believed(desk: Desk, client: Client) -> None:
    answers = asyncio.ensure_future(whole(client))
    first, reply = await desk.got()
    await desk.say(reply, accepted(first.id), delta(first.id, 0, 10), done(first.id, 3))
    again, reply = await desk.got()
    assert again.resume is not None
    assert again.resume.token_ids == [10]
    await desk.say(reply, accepted(first.id, 2), delta(first.id, 1, 11, 12, attempt=2), done(first.id, 3, 2))
    assert tokens_of(await answers) == [10, 11, 12]


async def test_a_lost_last_word_is_noticed_although_the_processor_lives(desk: Desk, client: Client) -> None:
    answers = asyncio.ensure_future(whole(client))
    first, reply = await desk.got()
    desk.has.add(first.id)
    await desk.say(reply, accepted(first.id), delta(first.id, 0, 10, 11))
    desk.has.clear()
    again, reply = await desk.got()
    assert again.resume is not None
    assert again.resume.token_ids == [10, 11]
    await desk.say(reply, accepted(first.id, 2), done(first.id, 2, 2))
    assert tokens_of(await answers) == [10, 11]


async def test_a_request_that_its_owner_still_has_is_left_to_it(desk: Desk, client: Client) -> None:
    answers = asyncio.ensure_future(whole(client))
    first, reply = await desk.got()
    desk.has.add(first.id)
    await desk.say(reply, accepted(first.id), delta(first.id, 0, 10))
    async with asyncio.timeout(10):
        assert [await desk.pings.get(), await desk.pings.get()] == [first.id, first.id]
    assert desk.asked.empty()
    await desk.say(reply, delta(first.id, 1, 11), done(first.id, 2))
    assert tokens_of(await answers) == [10, 11]


async def test_an_error_of_an_owner_that_is_no_more_is_not_believed(desk: Desk, client: Client) -> None:
    answers = asyncio.ensure_future(whole(client))
    first, reply = await desk.got()
    await desk.say(reply, accepted(first.id), delta(first.id, 0, 10), delta(first.id, 2, 12))
    again, reply = await desk.got()
    await desk.say(reply, Error(id=first.id, code=500, message="too late", attempt=1), accepted(again.id, 2))
    await desk.say(reply, delta(first.id, 1, 11, 12, attempt=2), done(first.id, 3, 2))
    assert tokens_of(await answers) == [10, 11, 12]


async def test_what_is_lost_of_one_choice_is_asked_for_with_what_came_of_all(desk: Desk, client: Client) -> None:
    async def several() -> list[Delta | Done]:
        async with asyncio.timeout(10):
            return [answer async for answer in client.generate("demo", [1], max_tokens=9, n=2)]

    def of(index: int, position: int, *tokens: int, attempt: int = 1) -> Delta:
        return Delta(id=first.id, attempt=attempt, position=position, token_ids=list(tokens), index=index)

    answers = asyncio.ensure_future(several())
    first, reply = await desk.got()
    await desk.say(reply, accepted(first.id), of(1, 0, 20), of(0, 0, 10), of(1, 2, 22))
    again, reply = await desk.got()
    assert again.resume is not None
    assert (again.resume.attempt, again.resume.token_ids, again.resume.choices) == (1, [], [[10], [20]])
    await desk.say(reply, accepted(first.id, 2), of(1, 1, 21, 22, attempt=2), of(0, 1, 11, attempt=2))
    await desk.say(reply, done(first.id, 5, 2))
    came = [answer for answer in await answers if isinstance(answer, Delta)]
    assert [(delta.index, delta.token_ids) for delta in came] == [(1, [20]), (0, [10]), (1, [21, 22]), (0, [11])]
