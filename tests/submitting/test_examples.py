"""docs/submitting.md is true: its messages decode, its programs run, and they see no seam when a processor dies."""

import asyncio
import json
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from messages import codec, lifecycle, submit
from messages.bus import Bus
from messages.client import Client
from messages.config import Nats
from messages.ids import parse_incarnation
from messages.submit import Delta
from messages.work import Own
from tests.submitting.examples import Folder, examples, has_nats_js
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

JS = pytest.mark.skipif(not has_nats_js(), reason="needs Node and nats.js: `make setup` with npm there installs it")
NATS_TOOL = pytest.mark.skipif(shutil.which("nats") is None, reason="needs the `nats` command line (natscli)")

LONG = {"max_tokens": 1_500, "ignore_eos": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two processors, and two each of the others, as the page supposes."""
    two = {"count": 2}
    configuration = simulated(processor=two, prefill=two, decode=two)
    configuration["models"][0] |= {"context_length": 4096, "simulated": {"ttft": 0.02, "itl": 0.002}}
    configuration["restart"] = {"intensity": 100, "backoff_max": 1.0}
    made = Cluster(tmp_path_factory.mktemp("submitting"), configuration)
    try:
        made.up()
        yield made
    finally:
        made.close()


@pytest.fixture
def url(cluster: Cluster) -> str:
    """Where the cluster's NATS is."""
    record = cluster.state.cluster()
    assert record is not None
    return record.nats.urls[0]


@pytest.fixture
def folder(cluster: Cluster, url: str, tmp_path: Path) -> Folder:
    """The page's programs."""
    return Folder(tmp_path, url, cluster.status().http["demo"].rstrip("/"))


@pytest.fixture
async def bus_there(url: str) -> AsyncIterator[Bus]:
    """A connection to the cluster's NATS."""
    made = await Bus.connect(Nats(url=url), name="test", wait=5)
    yield made
    await made.close()


async def told(url: str, **fields: Any) -> str:
    """What our own client is told: the same model says the same to the same question."""
    async with Client(url) as client:
        asked: dict[str, Any] = {"max_tokens": 24, "temperature": 0} | fields
        answers = [answer async for answer in client.chat("demo", "Hello!", **asked)]
    return "".join(answer.text for answer in answers if isinstance(answer, Delta))


@pytest.mark.parametrize(
    "example", [one for one in examples().values() if one.language == "json"], ids=lambda e: e.name
)
def test_every_message_of_the_page_is_one_of_the_protocol(example: Any) -> None:
    kind = getattr(submit, example.name, None) or getattr(lifecycle, example.name)
    read = msgspec.json.decode(example.text, type=kind)
    assert msgspec.json.decode(codec.to_json(read)).items() >= json.loads(example.text).items()


def test_every_program_of_the_page_is_run_here() -> None:
    programs = {example.name for example in examples().values() if example.language != "json"}
    python, javascript = {"chat.py", "refused.py", "ask.py"}, {"ask.mjs", "chat.mjs"}
    shell = {"chat", "chat-stream", "completion", "ready", "refused", "nats-request"}
    assert programs == python | javascript | shell


@pytest.mark.parametrize("program", ["chat.py", "ask.py", pytest.param("chat.mjs", marks=JS)])
async def test_a_chat_is_answered(program: str, folder: Folder, url: str) -> None:
    said = await asyncio.to_thread(folder.run, program)
    assert said == await told(url) + "\n"
    assert len(said) > 24


@pytest.mark.parametrize("program", ["ask.py", pytest.param("chat.mjs", marks=JS)])
async def test_a_stream_has_no_seam_where_its_processor_is_killed(
    program: str, folder: Folder, cluster: Cluster, url: str, bus_there: Bus
) -> None:
    whole = await told(url, **LONG)
    owners: asyncio.Queue[str] = asyncio.Queue()

    async def on_own(message: Any) -> None:
        owners.put_nowait(codec.from_msgpack(message.data, Own).owner)

    await bus_there.subscribe("troupe.v1.own.*", on_own)
    await bus_there.flush()
    running = await asyncio.to_thread(folder.start, program, json.dumps(LONG))
    async with asyncio.timeout(20):
        slot, generation = parse_incarnation(await owners.get())
    assert running.stdout is not None and running.stderr is not None
    begun = await asyncio.to_thread(running.stdout.read, 100)
    await asyncio.to_thread(cluster.kill, slot)
    rest = await asyncio.to_thread(running.stdout.read)
    wrong = await asyncio.to_thread(running.stderr.read)
    assert (await asyncio.to_thread(running.wait, 10), wrong) == (0, b"")
    running.stdout.close()
    running.stderr.close()
    assert (begun + rest).decode() == whole + "\n"
    async with asyncio.timeout(5):
        assert await owners.get() != f"{slot}-g{generation}", "nobody else has taken it on"
    await asyncio.to_thread(cluster.log.until, f"{slot}#{generation + 1} ready", 30)


@pytest.mark.parametrize("program", ["ask.py", pytest.param("chat.mjs", marks=JS)])
async def test_a_refusal_is_told(program: str, folder: Folder) -> None:
    said = await asyncio.to_thread(folder.run, program, '{"temprature": 0}')
    assert said == "400 temprature: there is no such field; did you mean 'temperature'?\n"


async def test_our_own_client_tells_a_refusal(folder: Folder) -> None:
    said = await asyncio.to_thread(folder.run, "refused.py")
    assert said == "400 max_tokens: 1000000 tokens are more than the whole context of 4096\n"


@pytest.mark.parametrize("program", ["ask.py", pytest.param("chat.mjs", marks=JS)])
def test_nobody_there_is_told_at_once(program: str, tmp_path: Path, nats_server: Any) -> None:
    said = Folder(tmp_path, nats_server.url, "http://127.0.0.1:9").run(program)
    assert said == "503 no processor is there\n"


async def test_curl_asks_and_is_answered(folder: Folder, url: str) -> None:
    answer = json.loads(await asyncio.to_thread(folder.run, "chat"))
    assert answer["choices"][0]["message"]["content"] == await told(url)
    assert answer["usage"]["completion_tokens"] == 24
    stream = await asyncio.to_thread(folder.run, "chat-stream")
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == answer["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 24
    completion = json.loads(await asyncio.to_thread(folder.run, "completion"))
    assert completion["object"] == "text_completion"
    assert completion["choices"][0]["text"]


async def test_curl_sees_readiness_models_and_refusals(folder: Folder) -> None:
    ready, models = msgspec.json.Decoder().decode_lines(
        (await asyncio.to_thread(folder.run, "ready")).replace("}{", "}\n{")
    )
    assert ready["status"] == "ready"
    assert [model["id"] for model in models["data"]] == ["demo"]
    head, _, body = (await asyncio.to_thread(folder.run, "refused")).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert "x-request-id: my-first-try" in head.lower()
    assert json.loads(body)["error"]["param"] == "temprature"


def command_line() -> list[str]:
    """The arguments of the page's `nats` command."""
    return shlex.split(examples()["nats-request"].text.replace("\\\n", ""), comments=True)


async def test_what_the_nats_command_line_sends_is_answered(url: str, bus_there: Bus) -> None:
    arguments = command_line()
    assert arguments[:4] == ["nats", "--server", "nats://127.0.0.1:4222", "request"]
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def on_answer(message: Any) -> None:
        answers.put_nowait(json.loads(message.data))

    inbox = bus_there.inbox()
    await bus_there.subscribe(inbox, on_answer)
    await bus_there.publish(arguments[4], arguments[-1].encode(), reply=inbox)
    text = ""
    kinds: list[str] = []
    async with asyncio.timeout(10):
        while not kinds or kinds[-1] == "delta" or len(kinds) == 1:
            answer = await answers.get()
            kinds.append(answer["type"])
            text += answer.get("text", "")
    assert kinds[0] == "accepted"
    assert kinds[-1] == "done"
    assert text == await told(url)


@NATS_TOOL
async def test_the_nats_command_line_shows_the_answers(folder: Folder, url: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "nats-request"], cwd=folder.folder, capture_output=True, text=True, timeout=30
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [answers[0]["type"], answers[-1]["type"]] == ["accepted", "done"], done
    assert "".join(answer.get("text", "") for answer in answers) == await told(url)
