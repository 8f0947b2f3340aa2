"""Bad input at both doors: each its clear error, and no harm to others."""

import asyncio
import io
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from messages import codec
from messages.bus import NobodyThereError
from messages.submit import Done, Error
from tests.conftest import NatsServer, eventually
from tests.processor.stage import SECONDS, Gpu, Stage, raised

pytestmark = pytest.mark.nats

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "demo", "prompt": "Hi"}
IDS = {"model": "demo", "token_ids": [1, 2]}

BAD: list[tuple[str, Any, int, str | None, str]] = [
    # kind, body, code, field, what is said
    ("chat", b"{not json", 400, None, "not valid JSON"),
    ("chat", b"", 400, None, "not valid JSON"),
    ("chat", b"[1]", 400, None, "expected `object`"),
    ("chat", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, None, "not valid JSON"),
    ("chat", b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "not valid JSON"),
    ("chat", b'{"model": "demo", "messages": ' + b"[" * 100_000, 400, "messages[0]", "expected `object`"),
    ("chat", CHAT | {"messages": "Hi"}, 400, "messages", "expected `array`"),
    ("chat", CHAT | {"messages": []}, 400, "messages", "length >= 1"),
    ("chat", {"model": "demo"}, 400, "messages", "missing"),
    ("chat", CHAT | {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "one of system, "),
    ("chat", CHAT | {"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing"),
    ("chat", CHAT | {"model": "other"}, 404, "model", "no model 'other' here; there is 'demo'"),
    ("chat", CHAT | {"model": "de*"}, 404, "model", "no model 'de*'"),
    ("chat", CHAT | {"model": "x" * 3_000}, 404, "model", "there is 'demo'"),
    ("chat", CHAT | {"v": 2}, 400, "v", "schema version 1, not 2"),
    ("chat", CHAT | {"temprature": 1}, 400, "temprature", "did you mean 'temperature'?"),
    ("chat", CHAT | {"temperature": -1}, 400, "temperature", ">= 0"),
    ("chat", CHAT | {"temperature": "hot"}, 400, "temperature", "expected `float"),
    ("chat", b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}', 400, None, "range"),
    ("chat", CHAT | {"top_p": 0}, 400, "top_p", "> 0"),
    ("chat", CHAT | {"top_k": 0}, 400, "top_k", "-1 means all"),
    ("chat", CHAT | {"max_tokens": -1}, 400, "max_tokens", ">= 1"),
    ("chat", CHAT | {"max_tokens": 10**30}, 400, "max_tokens", ""),
    ("chat", CHAT | {"max_tokens": 5_000}, 400, "max_tokens", "5000 tokens are more than the whole context of 4096"),
    ("chat", CHAT | {"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", "9 is more than the 8"),
    ("chat", CHAT | {"timeout": 0}, 400, "timeout", "> 0"),
    ("chat", CHAT | {"stop": ["a"] * 17}, 400, "stop", "length <= 16"),
    ("chat", CHAT | {"stop": ""}, 400, "stop", "empty"),
    ("chat", CHAT | {"stop": "x" * 2_000}, 400, "stop", "2000 characters; at most 1024"),
    ("chat", CHAT | {"id": "mine"}, 400, "id", "'mine' is no UUID"),
    ("chat", CHAT | {"stop_token_ids": [512]}, 400, "stop_token_ids", "outside the vocabulary of 512"),
    ("chat", CHAT | {"tool_choice": "required"}, 400, "tool_choice", "no tools of which one could be called"),
    ("completion", TEXT | {"prompt": ""}, 400, "prompt", "empty"),
    ("completion", TEXT | {"prompt": []}, 400, "prompt", "empty"),
    ("completion", TEXT | {"prompt": "a" * 9_000}, 400, "prompt", "leaves no room in the context of 4096"),
    ("completion", TEXT | {"prompt": [1, 2, 999_999]}, 400, "prompt", "prompt[2]: token id 999999 is outside"),
    ("completion", TEXT | {"prompt": [-1]}, 400, "prompt[0]", ">= 0"),
    ("completion", TEXT | {"prompt": [2**70]}, 400, None, ""),
    ("completion", TEXT | {"prompt": None}, 400, "prompt", "got `null`"),
    ("generate", IDS | {"token_ids": [1, 512]}, 400, "token_ids", "token_ids[1]: token id 512 is outside"),
    ("generate", IDS | {"token_ids": []}, 400, "token_ids", "length >= 1"),
    ("generate", IDS | {"token_ids": [0] * 4_096}, 400, "token_ids", "a prompt of 4096 tokens leaves no room"),
    ("generate", IDS | {"resume": {"attempt": 1, "token_ids": [900]}}, 400, "resume.token_ids", "outside"),
    (
        "generate",
        IDS | {"max_tokens": 1, "resume": {"attempt": 1, "token_ids": [9, 9]}},
        400,
        "resume.token_ids",
        "more",
    ),
    ("embed", {"input": "x"}, 404, None, "does not serve embeddings; there is chat, completion, generate"),
]


async def well(stage: Stage, decode: Gpu) -> None:
    """See that an ordinary request is served as ever."""
    talk = await stage.generate([1, 2], max_tokens=3)
    job = await decode.got()
    assert job.request == talk.id
    await decode.emit(job, [3], "stop")
    assert isinstance(await talk.last(), Done)
    assert stage.service.journal.get(talk.id) is None


async def test_bad_input_over_nats(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    wrong = []
    for kind, body, code, field, said in BAD:
        body = body if isinstance(body, bytes) else dict(body)
        talk = await stage.submit(kind, body)
        error = await talk.last()
        if (
            not isinstance(error, Error)
            or (error.code, len(talk.answers)) != (code, 1)
            or said not in error.message
            or field not in (None, error.param)
            or (isinstance(body, dict) and kind != "embed" and error.id != body["id"])
        ):
            wrong.append((kind, str(body)[:80], error))
    assert not wrong, "\n".join(map(str, wrong))
    await well(stage, decode)


async def test_bad_input_over_http(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    paths = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
    wrong = []
    for kind, body, code, field, said in BAD:
        if kind not in paths:
            continue
        status, answer, _ = await stage.post(paths[kind], body)
        error = answer["error"]
        if (
            status != code
            or set(error) != {"message", "type", "param", "code"}
            or error["type"] != "invalid_request_error"
            or said not in error["message"]
            or field not in (None, error["param"])
        ):
            wrong.append((kind, str(body)[:80], answer))
    assert not wrong, "\n".join(map(str, wrong))
    await well(stage, decode)


async def test_truncated_msgpack_and_unknown_forms(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    whole = codec.to_msgpack(IDS)
    reply = stage.bus.inbox()
    answers: asyncio.Queue[Any] = asyncio.Queue()

    async def take(msg: Any) -> None:
        answers.put_nowait(msg.data)

    await stage.bus.subscribe(reply, take)
    for length in range(len(whole)):
        subject = stage.subjects.submit("demo", "generate")
        await stage.bus.publish(subject, whole[:length], reply=reply, headers={"content-type": codec.MSGPACK})
        async with asyncio.timeout(SECONDS):
            error = codec.msgpack_decoder(Error).decode(await answers.get())
        assert error.code == 400
        assert "msgpack" in error.message
    talk = await stage.submit("generate", dict(IDS), headers={"content-type": "text/plain"})
    error = await talk.last()
    assert isinstance(error, Error)
    assert "'text/plain' is neither application/json nor application/msgpack" in error.message
    await well(stage, decode)


async def test_a_body_of_ten_megabytes(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"body_bytes": 100_000}) as stage:
        await stage.gate(True)
        decode = await stage.gpu("decode")
        body = msgspec.json.encode(TEXT | {"prompt": "x" * 10_000_000})
        status, answer, _ = await stage.post("/v1/completions", io.BytesIO(body))
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert f"{len(body)} bytes; at most 100000" in answer["error"]["message"]

        async def chunks() -> Any:
            for _ in range(100):
                yield b"x" * 10_000

        async with stage.session.post(f"{stage.http.address}/v1/completions", data=chunks()) as streamed:
            assert streamed.status == 413
            assert "at most 100000" in (await streamed.json())["error"]["message"]
        small = msgspec.json.encode(TEXT | {"prompt": "x" * 200_000})
        error = await (await stage.submit("completion", small)).last()
        assert isinstance(error, Error)
        assert error.code == 413
        assert f"{len(small)} bytes; at most 100000" in error.message
        await well(stage, decode)


async def test_a_subject_with_a_wildcard_reaches_nobody(stage: Stage) -> None:
    with pytest.raises(NobodyThereError):
        await stage.bus.request("troupe.v1.submit.*.chat", msgspec.json.encode(CHAT), timeout=SECONDS)
    with pytest.raises(ValueError, match="cannot stand in a subject"):
        stage.subjects.submit("*", "chat")


async def test_a_duplicate_id_over_http(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    job = await decode.got()
    status, answer, _ = await stage.post("/v1/completions", TEXT | {"id": talk.id})
    assert (status, answer["error"]["code"]) == (409, "conflict")
    await decode.emit(job, [1], "stop")
    assert isinstance(await talk.last(), Done)


async def test_long_prompts_are_prepared_off_the_loop_and_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    gate, prepare = threading.Event(), stage.service.intake.prepare

    def slow(body: Any) -> Any:
        if stage.service.intake.is_long(body):
            assert gate.wait(SECONDS)
        return prepare(body)

    monkeypatch.setattr(stage.service.intake, "prepare", slow)
    monkeypatch.setattr("actors.processor.service.LONG_WAITING", 2)
    decode = await stage.gpu("decode")
    long = [await stage.complete("a b " * 700, max_tokens=2) for _ in range(2)]
    await eventually(lambda: stage.service._long == 2)
    over = await (await stage.complete("a b " * 700)).last()
    assert isinstance(over, Error)
    assert (over.code, over.retry_after) == (429, 2.0)
    again = await stage.submit("completion", {"prompt": "a b " * 700, "id": long[0].id}, reply=long[0].reply)
    await stage.bus.publish(stage.subjects.cancel(long[1].id))
    await well(stage, decode)
    await stage.nats.shut()
    draining = asyncio.ensure_future(stage.service.drain())
    await stage.bus.flush()
    assert not draining.done()
    gate.set()
    await decode.emit(await decode.got(), [1], "stop")
    assert isinstance(await long[0].last(), Done)
    cancelled = await long[1].last()
    assert isinstance(cancelled, Error)
    assert cancelled.code == 499
    await asyncio.wait_for(draining, SECONDS)
    assert again.answers == []
    assert decode.work.empty()


async def test_a_prompt_that_nats_cannot_carry(tmp_path: Path) -> None:
    (tmp_path / "small.conf").write_text("max_payload: 8192")
    server = NatsServer(tmp_path / "jetstream", "-c", str(tmp_path / "small.conf"))
    server.start()
    try:
        async with raised(server.url) as stage:
            await stage.gate(True)
            decode = await stage.gpu("decode")
            status, answer, _ = await stage.post("/v1/completions", TEXT | {"prompt": [1] * 3_000})
            assert status == 413
            assert "3000 tokens makes a message of 14048 bytes; NATS takes 8192" in answer["error"]["message"]
            await well(stage, decode)
    finally:
        server.stop()


async def test_a_reply_subject_that_is_none(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    for bad in (b"{not json", msgspec.json.encode({"token_ids": [1]})):
        await stage.bus.publish("troupe.v1.submit.demo.generate", bad)
        for reply in ("a..b", ".", "*", ">"):
            await stage.bus.publish("troupe.v1.submit.demo.generate", bad, reply=reply)
    await stage.bus.flush()
    await eventually(lambda: stage.nats.unanswerable == 10)
    assert (len(stage.service.journal), decode.work.empty()) == (0, True)
    await well(stage, decode)


async def connected(address: str) -> socket.socket:
    """Connect without anything that would read."""
    host, port = address.rpartition("//")[2].split(":")
    raw = socket.socket()
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    return raw


async def test_a_client_on_nats_that_never_reads(stage: Stage) -> None:
    """Its answers pile up at the server, which drops it; the processor and the others go on."""
    decode = await stage.gpu("decode")
    with await connected(stage.bus.urls[0]) as raw:
        body = msgspec.json.encode({"token_ids": [1]})
        words = b'CONNECT {"verbose":false}\r\nSUB lazy 1\r\nPUB troupe.v1.submit.demo.generate lazy %d\r\n%s\r\n'
        await asyncio.get_running_loop().sock_sendall(raw, words % (len(body), body))
        job = await decode.got()
        for _ in range(200):
            await decode.emit(job, [7] * 4_000)
        await well(stage, decode)
        await decode.emit(job, [], "length")
        await eventually(lambda: len(stage.service.journal) == 0)


async def test_a_client_on_http_that_never_reads(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut off after a time, and its work aborted; others are served meanwhile."""
    monkeypatch.setattr("actors.processor.door_http.STALL_SECONDS", 0.3)
    decode = await stage.gpu("decode")
    assert stage.http.address is not None
    with await connected(stage.http.address) as raw:
        body = msgspec.json.encode(TEXT | {"stream": True})
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        await asyncio.get_running_loop().sock_sendall(raw, head + body)
        job = await decode.got()
        for _ in range(400):
            await decode.emit(job, [7] * 40_000)
            if not decode.aborts.empty():
                break
            await stage.bus.flush()
        await well(stage, decode)
        assert (await decode.aborted()).request == job.request
        assert len(stage.service.journal) == 0


async def test_half_a_request_harms_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.processor.door_http.STALL_SECONDS", 0.3)
    decode = await stage.gpu("decode")
    assert stage.http.address is not None
    with await connected(stage.http.address) as raw:
        half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        await asyncio.get_running_loop().sock_sendall(raw, half)
        await well(stage, decode)
        async with asyncio.timeout(SECONDS):
            assert b" 408 " in await asyncio.get_running_loop().sock_recv(raw, 100)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405), ("GET", "/v2", 404), ("POST", "/", 404)],
)
async def test_no_such_page(stage: Stage, method: str, path: str, status: int) -> None:
    async with stage.session.request(method, f"{stage.http.address}{path}") as answer:
        assert answer.status == status
        assert path in (await answer.json())["error"]["message"]
        assert ("Allow" in answer.headers) == (status == 405)


async def test_a_request_id_that_no_header_can_give_back(stage: Stage) -> None:
    assert stage.http.address is not None
    with await connected(stage.http.address) as raw:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xc3\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            answer = await loop.sock_recv(raw, 1_000)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"X-Request-Id" not in answer


async def test_not_http_at_all(stage: Stage) -> None:
    assert stage.http.address is not None
    with await connected(stage.http.address) as raw:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, b"\x16\x03\x01 hello\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            assert b" 400 " in await loop.sock_recv(raw, 100)
    async with stage.session.get(f"{stage.http.address}/health/live") as answer:
        assert answer.status == 200
