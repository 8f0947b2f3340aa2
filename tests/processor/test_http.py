"""The HTTP door as OpenAI's own client and plain HTTP see it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from actors.processor.door_http import _flow
from messages.submit import Done
from tests.conftest import NatsServer, eventually
from tests.processor.stage import SECONDS, Gpu, Stage, raised, refuse

pytestmark = pytest.mark.nats

TEXT = {"model": "demo", "prompt": "Hi"}


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{stage.http.address}/v1", api_key="-", max_retries=0) as client:
        yield client


async def answering(stage: Stage, *texts: str, finish: str = "stop") -> Gpu:
    """Add a decode actor that answers whatever it is asked with these texts, a frame each."""
    decode = await stage.gpu("decode")

    async def answer() -> None:
        while True:
            job = await decode.work.get()
            for text in texts:
                await decode.emit(job, stage.ids(text))
            await decode.emit(job, [], finish)

    decode.answering = asyncio.ensure_future(answer())  # type: ignore[attr-defined]
    return decode


async def test_chat_by_the_openai_client(stage: Stage, client: openai.AsyncOpenAI) -> None:
    await answering(stage, "Hel", "lo")
    answer = await client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hi"}], temperature=0
    )
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(stage.ids("Hel") + stage.ids("lo"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_a_chat_stream_by_the_openai_client(stage: Stage, client: openai.AsyncOpenAI) -> None:
    await answering(stage, 'a\n"b" ', "\u20ac \u4e16", finish="length")
    stream = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == 'a\n"b" \u20ac \u4e16'
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


async def test_completions_by_the_openai_client(stage: Stage, client: openai.AsyncOpenAI) -> None:
    await answering(stage, "one ", "two")
    answer = await client.completions.create(model="demo", prompt="count", max_tokens=20)
    assert answer.choices[0].text == "one two"
    stream = await client.completions.create(model="demo", prompt=[1, 2], stream=True, stop=["tw"])
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one "
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_errors_are_the_openai_clients_own(stage: Stage, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        await client.completions.create(model="x", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.completions.create(model="demo", prompt="a", temperature=9)
    await stage.gpu("decode", act=refuse(400))
    with pytest.raises(openai.BadRequestError, match="says 400"):
        await client.completions.create(model="demo", prompt="a")
    with pytest.raises(openai.BadRequestError, match="says 400"):
        await client.completions.create(model="demo", prompt="a", stream=True)


async def test_an_error_in_mid_stream_is_told_in_the_stream(stage: Stage, client: openai.AsyncOpenAI) -> None:
    decode = await stage.gpu("decode")
    asking = asyncio.ensure_future(client.completions.create(model="demo", prompt="a", stream=True))
    job = await decode.got()
    await decode.emit(job, stage.ids("x"))
    stream = await asyncio.wait_for(asking, SECONDS)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].text == "x"
    await decode.emit(job, [], "error", 500, "the engine broke")
    with pytest.raises(openai.APIError, match="the engine broke"):
        await anext(chunks)


async def test_a_closed_gate_says_when_to_come_again(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 0, "retry_after": 3}) as stage:
        await stage.gate(False)
        status, answer, headers = await stage.post("/v1/completions", TEXT)
        assert (status, headers["Retry-After"], answer["error"]["type"]) == (503, "3", "service_unavailable_error")


async def test_models_and_health_follow_the_gate(stage: Stage) -> None:
    async def get(path: str) -> tuple[int, Any]:
        async with stage.session.get(f"{stage.http.address}{path}") as answer:
            return answer.status, await answer.json()

    assert (await get("/health/live"))[0] == 200
    assert (await get("/health/ready"))[0] == 200
    status, models = await get("/v1/models")
    assert (status, [entry["id"] for entry in models["data"]]) == (200, ["demo"])
    assert models["data"][0]["max_model_len"] == 4096
    await stage.gate(False, 2)
    assert (await get("/health/live"))[0] == 200
    status, answer = await get("/health/ready")
    assert (status, answer["missing"]) == (503, ["demo-decode-0: loading"])
    assert (await get("/v1/models"))[1]["data"] == []


async def test_a_request_sent_right_after_the_gate_opens_succeeds(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 0}) as stage:
        await stage.gate(False)
        await answering(stage, "x")
        await stage.gate(True, 2)
        assert (await stage.post("/v1/completions", TEXT))[0] == 200


@pytest.mark.parametrize("given", ["", "trace-7", "6f2d4c1e-0000-4000-8000-00000000abcd"])
async def test_the_clients_name_for_a_request(stage: Stage, given: str) -> None:
    decode = await answering(stage, "x")
    status, answer, headers = await stage.post("/v1/completions", TEXT, **({"X-Request-Id": given} if given else {}))
    assert status == 200
    assert headers["X-Request-Id"] == (given or answer["id"].removeprefix("cmpl-"))
    if len(given) == 36:
        assert answer["id"] == f"cmpl-{given}"
    assert decode.aborts.empty()


def before_the_first_token(decode: Gpu, stage: Stage) -> list[int]:
    return []


def after_some_tokens(decode: Gpu, stage: Stage) -> list[int]:
    return stage.ids("some")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", [before_the_first_token, after_some_tokens])
async def test_a_client_that_goes_away_aborts_its_work_everywhere(
    pair: Stage, stream: bool, when: Callable[[Gpu, Stage], list[int]]
) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    body = msgspec.json.encode(TEXT | {"stream": stream})
    asking = asyncio.ensure_future(pair.session.post(f"{pair.http.address}/v1/completions", data=body))
    job = await decode.got()
    await prefill.got()
    if ids := when(decode, pair):
        await decode.emit(job, ids)
        await eventually(lambda: [len(known.tokens) for known in pair.service.journal] == [len(ids)])
    if stream and ids:
        answer = await asking
        await answer.content.readline()
        answer.close()
    else:
        asking.cancel()
    assert (await decode.aborted()).request == job.request
    assert (await prefill.aborted()).request == job.request
    assert len(pair.service.journal) == 0


async def test_a_held_request_whose_client_goes_away_leaves_the_line(stage: Stage) -> None:
    await stage.gate(False, 2)
    asking = asyncio.ensure_future(
        stage.session.post(f"{stage.http.address}/v1/completions", data=msgspec.json.encode(TEXT))
    )
    await eventually(lambda: len(stage.service.line) == 1)
    asking.cancel()
    await eventually(lambda: len(stage.service.line) == 0)


async def test_a_connection_is_kept_and_answers_at_once(stage: Stage) -> None:
    """Nagle's algorithm would cost 40 ms a request on a kept connection."""
    await answering(stage, "x")
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        began = loop.time()
        for _ in range(20):
            async with session.post(f"{stage.http.address}/v1/completions", json=TEXT | {"stream": True}) as answer:
                assert b"[DONE]" in await answer.read()
        assert loop.time() - began < 20 * 0.04


async def test_two_processors_share_a_port(stage: Stage) -> None:
    from actors.processor.door_http import HttpDoor

    assert stage.http.address is not None
    other = HttpDoor(stage.service, "127.0.0.1", int(stage.http.address.rpartition(":")[2]))
    await other.open()
    assert other.address == stage.http.address
    await stage.http.shut()
    async with aiohttp.ClientSession() as session, session.get(f"{other.address}/health/live") as answer:
        assert answer.status == 200
    await other.shut()
    await other.close()


async def test_an_http_request_may_be_cancelled_over_nats(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    asking = asyncio.ensure_future(stage.post("/v1/completions", TEXT))
    job = await decode.got()
    await stage.bus.publish(stage.subjects.cancel(job.request))
    status, answer, _ = await asyncio.wait_for(asking, SECONDS)
    assert (status, answer["error"]["type"]) == (499, "cancelled_error")


async def test_both_doors_serve_at_once(stage: Stage) -> None:
    await answering(stage, "x")
    talks = [await stage.complete("a") for _ in range(5)]
    answers = await asyncio.gather(*(stage.post("/v1/completions", TEXT) for _ in range(5)))
    assert [status for status, *_ in answers] == [200] * 5
    for talk in talks:
        assert isinstance(await talk.last(), Done)


async def raw_stream(stage: Stage, version: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream over a connection whose reading is the test's."""
    assert stage.http.address is not None
    host, port = stage.http.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    body = msgspec.json.encode(TEXT | {"stream": True})
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


def streamed(body: bytes) -> str:
    """Put the texts of a stream's events together; each event is whole, and the last one is the end."""
    *events, end, nothing = body.split(b"\n\n")
    assert (end, nothing) == (b"data: [DONE]", b"")
    return "".join(msgspec.json.decode(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events)


async def test_a_stream_for_a_client_of_http_1_0_has_no_chunks(stage: Stage) -> None:
    await answering(stage, "a ", "b ", "c")
    reader, writer = await raw_stream(stage, "1.0")
    async with asyncio.timeout(SECONDS):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200") and b"chunked" not in head.lower()
    assert streamed(body) == "a b c"
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_reads_late_gets_all_of_it_in_order(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not read piles up in the sockets, then here, and goes out when it reads again."""
    flowed: list[bool] = []

    def flow(*of: Any) -> bool:
        flowed.append(_flow(*of))
        return flowed[-1]

    monkeypatch.setattr("actors.processor.door_http._flow", flow)
    decode = await stage.gpu("decode")
    reader, writer = await raw_stream(stage, "1.1")
    job = await decode.got()
    words = [f"{number} " for number in range(400)]
    for word in words:
        await decode.emit(job, stage.ids(word) * 8_000)
    await eventually(lambda: False in flowed)
    await decode.emit(job, [], "stop")
    await eventually(lambda: len(stage.service.journal) == 0)
    async with asyncio.timeout(SECONDS):
        head, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    assert b"chunked" in head and True in flowed
    body, size, at = [], 1, 0
    while size:
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        body.append(rest[end + 2 : end + 2 + size])
        at = end + 4 + size
    assert streamed(b"".join(body)) == "".join(word * 8_000 for word in words)
    writer.close()
    await writer.wait_closed()
