"""What is wrong with a request for embeddings is said: which field, what is wrong, and what would be right."""

from typing import Any

import pytest

from messages.submit import Error
from tests.conftest import NatsServer
from tests.embeddings.stage import Stage, raised

pytestmark = pytest.mark.nats

WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "no input": ({}, 400, "input: missing"),
    "empty text": ({"input": ""}, 400, "input: empty"),
    "empty list": ({"input": []}, 400, "input: empty"),
    "one empty text": ({"input": ["a", ""]}, 400, "input[1]: empty"),
    "one empty list of ids": ({"input": [[1], []]}, 400, "input[1]: empty"),
    "a mixture": ({"input": ["a", [1]]}, 400, "a mixture"),
    "ids and texts": ({"input": [1, "a"]}, 400, "a mixture"),
    "outside the vocabulary": ({"input": [1, 512]}, 400, "input[1]: token id 512 is outside the vocabulary of 512"),
    "outside in a list": ({"input": [[1], [2, 600]]}, 400, "input[1][1]: token id 600"),
    "a negative id": ({"input": [-1]}, 400, "input"),
    "too long": ({"input": [7] * 4_096}, 400, "4096 tokens do not fit in the context of 4096"),
    "too long a text": ({"input": ["a", "é" * 9_000]}, 400, "input[1]: "),
    "too many": ({"input": ["a"] * 101}, 413, "101 inputs are more than the 100"),
    "too many dimensions": ({"input": "a", "dimensions": 5}, 400, "dimensions: 5 are more than the 4"),
    "no dimensions": ({"input": "a", "dimensions": 0}, 400, "dimensions"),
    "no such form": ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    "an unknown field": ({"input": "a", "dimension": 3}, 400, "did you mean 'dimensions'"),
}


@pytest.fixture
async def ready(stage: Stage) -> Stage:
    """With an encoder, so that the length of vectors is known."""
    await stage.encoder(answers=True)
    return stage


async def test_wrong_requests_are_refused_alike_at_both_doors(ready: Stage) -> None:
    for name, (fields, code, says) in WRONG.items():
        status, answer = await ready.post({"model": "demo"} | fields)
        assert (status, says in answer["error"]["message"]) == (code, True), (name, answer)
        given = dict(fields)
        talk = await ready.submit(given.pop("input", None), **given) if "input" in given else None
        if talk is not None:
            last = await talk.last()
            assert isinstance(last, Error)
            assert (last.code, last.message) == (code, answer["error"]["message"]), name


async def test_a_body_that_cannot_be_read_is_refused_and_the_next_one_is_answered(ready: Stage) -> None:
    for body, code in (
        (b"{", 400),
        (b"[]", 400),
        (b'{"model":"demo","input":"\\ud800"}', 400),
        (b'{"model":"demo","input":"\xff"}', 400),
        (b'{"input":"a"}', 400),
        (b'{"model":"other","input":"a"}', 404),
        (b'{"model":"demo","input":"' + b"a" * 5_000_000 + b'"}', 413),
    ):
        status, answer = await ready.post(body)
        assert status == code, answer
        assert answer["error"]["message"]
    assert (await ready.post({"model": "demo", "input": "a"}))[0] == 200


async def test_a_model_that_is_not_known_to_bear_it_refuses_to_cut_its_vectors(nats_server: NatsServer) -> None:
    async with raised(nats_server.url) as stage:
        await stage.gate(True)
        await stage.encoder(answers=True)
        status, answer = await stage.post({"model": "demo", "input": "a", "dimensions": 2})
        assert status == 400
        assert "embedding.dimensions" in answer["error"]["message"]
        assert (await stage.post({"model": "demo", "input": "a", "dimensions": 4}))[0] == 200
    async with raised(nats_server.url, embedding={"dimensions": [2, 3]}) as stage:
        await stage.gate(True)
        await stage.encoder(answers=True)
        status, answer = await stage.post({"model": "demo", "input": "a", "dimensions": 1})
        assert (status, "2, 3" in answer["error"]["message"]) == (400, True)
        _, answer = await stage.post({"model": "demo", "input": "a", "dimensions": 3})
        assert len(answer["data"][0]["embedding"]) == 3


async def test_bodies_beyond_what_a_door_may_hold_are_refused_for_now(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"held_bytes": 2_000, "retry_after": 3.0}) as stage:
        await stage.gate(True)
        await stage.encoder(answers=True)
        status, answer = await stage.post({"model": "demo", "input": "a" * 3_000})
        assert (status, "more than 2000" in answer["error"]["message"]) == (429, True), answer
        last = await (await stage.submit("a" * 3_000)).last()
        assert isinstance(last, Error)
        assert (last.code, "at the NATS door already" in last.message) == (429, True), last
        assert (await stage.post({"model": "demo", "input": "a"}))[0] == 200
