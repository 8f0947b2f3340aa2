"""configs/embedding.yaml as its users run it: the openai client, our own, the command line, and encoders that die."""

import asyncio
import json
import os
import random
import signal
from asyncio import to_thread
from collections.abc import Iterator

import openai
import pytest

from actors.engines.simulated_model import unit_vector
from messages import codec
from messages.client import Client, RequestError
from tests.cluster.stage import configuration, running
from tests.supervisor.cluster import Cluster

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

SIZE = 64
TEXTS = ["A troupe is a company of actors.", "Each has a part.", "The curtain rises."]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from running(tmp_path_factory.mktemp("embedding"), configuration("embedding.yaml"))


def door(cluster: Cluster) -> str:
    record = cluster.state.cluster()
    assert record is not None
    return f"{record.http['embed']}/v1"


def nats(cluster: Cluster) -> list[str]:
    record = cluster.state.cluster()
    assert record is not None
    return record.nats.urls


def near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True))


def expected(ids: list[int], dimensions: int = 0) -> list[float]:
    return unit_vector(codec.pack_tokens(ids), SIZE, dimensions)


async def test_the_openai_client_sync_and_async_with_every_field(cluster: Cluster) -> None:
    url = await to_thread(door, cluster)

    def sync() -> list[list[float]]:
        with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:
            # Left out, encoding_format is base64: the client decodes it.
            plain = client.embeddings.create(model="embed", input=TEXTS)
            assert [entry.index for entry in plain.data] == [0, 1, 2]
            assert plain.usage.prompt_tokens == plain.usage.total_tokens > 3
            floats = client.embeddings.create(model="embed", input=TEXTS, encoding_format="float", user="somebody")
            assert [entry.embedding for entry in floats.data] == [entry.embedding for entry in plain.data]
            return [entry.embedding for entry in plain.data]

    vectors = await to_thread(sync)
    assert all(near([sum(x * x for x in vector)], [1.0]) for vector in vectors)
    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:
        alone = [await client.embeddings.create(model="embed", input=text) for text in TEXTS]
        assert [answer.data[0].embedding for answer in alone] == vectors
        ids = [[5, 6, 7], [8], [9, 10]]
        answer = await client.embeddings.create(model="embed", input=ids, dimensions=16)
        assert all(near(entry.embedding, expected(ids[entry.index], 16)) for entry in answer.data)
        one = await client.embeddings.create(model="embed", input=ids[0])
        assert near(one.data[0].embedding, expected(ids[0]))
        with pytest.raises(openai.BadRequestError, match="65 are more than the 64"):
            await client.embeddings.create(model="embed", input="a", dimensions=65)
        with pytest.raises(openai.NotFoundError, match="does not serve chat; there is /v1/embeddings"):
            await client.chat.completions.create(model="embed", messages=[{"role": "user", "content": "Hi"}])
        models = [model async for model in await client.models.list()]
        assert [(model.id, model.to_dict()["serves"]) for model in models] == [("embed", ["embeddings"])]


async def test_our_client_and_the_command_line(cluster: Cluster) -> None:
    ids = [[number, number + 1] for number in range(300)]
    async with Client(await to_thread(nats, cluster)) as client:
        answer = await client.embed("embed", ids)
        assert len(answer.vectors) == 300
        assert all(near(vector.tolist(), expected(tokens)) for vector, tokens in zip(answer.vectors, ids, strict=True))
        assert answer.usage.prompt_tokens == 600
        with pytest.raises(RequestError, match="does not serve chat; there is embed"):
            async for _ in client.chat("embed", "Hi"):
                pass
        with pytest.raises(RequestError, match="does not generate"):
            async for _ in client.generate("embed", [5]):
                pass
        with pytest.raises(RequestError, match="empty") as refused:
            await client.embed("embed", [])
        assert refused.value.code == 400
        vector = (await client.embed("embed", TEXTS[0])).vectors[0].tolist()
    said = await to_thread(cluster.command, "submit", "--embed", TEXTS[0])
    assert near(json.loads(said.stdout), vector), said.stderr
    said = await to_thread(cluster.command, "submit", TEXTS[0])
    assert said.returncode
    assert "does not serve chat" in said.stderr


async def test_the_way_to_try_it_is_shown_as_it_works(cluster: Cluster) -> None:
    line = next(line for line in cluster.log.lines if "curl" in line)
    assert "/v1/embeddings" in line
    assert any("submit" in line and "--embed" in line for line in cluster.log.lines)


@pytest.mark.drill
async def test_encoders_and_the_processor_killed_and_stopped_under_load_lose_nothing(cluster: Cluster) -> None:
    stop, answered = asyncio.Event(), 0

    async def ask(client: Client, seed: int) -> None:
        nonlocal answered
        chance = random.Random(seed)
        while not stop.is_set():
            ids = [[chance.randrange(10, 500) for _ in range(chance.randrange(1, 20))] for _ in range(200)]
            answer = await client.embed("embed", ids)
            assert all(near(got.tolist(), expected(tokens)) for got, tokens in zip(answer.vectors, ids, strict=True))
            answered += 1

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while answered < count:
                await asyncio.sleep(0.01)

    async with Client(await to_thread(nats, cluster), wait=True) as client:
        load = [asyncio.ensure_future(ask(client, seed)) for seed in range(6)]
        try:
            for slot, number in (
                ("embed-encoder-0", signal.SIGKILL),
                ("embed-encoder-1", signal.SIGKILL),
                ("embed-encoder-0", signal.SIGSTOP),
                ("embed-processor-0", signal.SIGKILL),
            ):
                await until(answered + 5)
                after = len(cluster.log.lines)
                generation = await to_thread(cluster.kill, slot, number)
                await to_thread(cluster.log.until, f"{slot}#{generation + 1} ready", 20, after=after)
            await until(answered + 5)
        finally:
            stop.set()
            done = await asyncio.gather(*load, return_exceptions=True)
    assert not [error for error in done if isinstance(error, BaseException)]


async def test_a_drained_encoder_finishes_what_it_has(cluster: Cluster) -> None:
    async with Client(await to_thread(nats, cluster)) as client:
        asked = [asyncio.ensure_future(client.embed("embed", [[7] * 10] * 500)) for _ in range(8)]
        record = await to_thread(cluster.record, "embed-encoder-1")
        after = len(cluster.log.lines)
        os.kill(record.pid, signal.SIGTERM)
        answers = await asyncio.gather(*asked)
        assert all(len(answer.vectors) == 500 for answer in answers)
    await to_thread(cluster.log.until, rf"embed-encoder-1#{record.generation + 1} ready", 20, after=after)
