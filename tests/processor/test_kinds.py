"""Endpoint kinds by configuration: what a model does not serve is a 404 at both doors that says what it serves."""

from typing import Any

import pytest

from messages.submit import Done, Error
from tests.conftest import NatsServer
from tests.processor.stage import raised

pytestmark = pytest.mark.nats

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "demo", "prompt": "Hi"}


async def test_a_kind_that_is_not_served_is_not_found(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, serves=["completions"]) as stage:
        await stage.gate(True)
        gpu = await stage.gpu("decode")
        status, answer, _ = await stage.post("/v1/chat/completions", CHAT)
        assert status == 404
        assert answer["error"]["message"] == "'demo' does not serve chat; there is /v1/completions"
        refused = await (await stage.submit("chat", dict(CHAT))).last()
        assert isinstance(refused, Error)
        assert (refused.code, refused.message) == (404, "'demo' does not serve chat; there is completion, generate")
        status, answer, _ = await stage.post("/v1/embeddings", {"model": "demo", "input": "Hi"})
        assert (status, "does not serve embeddings" in answer["error"]["message"]) == (404, True)
        served = await stage.submit("completion", dict(COMPLETION))
        await gpu.emit(await gpu.got(), [65], "length")
        assert isinstance(await served.last(), Done)
        async with stage.session.get(f"{stage.http.address}/v1/models") as models:
            assert (await models.json())["data"][0]["serves"] == ["completions"]


async def test_a_model_that_serves_no_endpoint_still_takes_token_ids(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, serves=[]) as stage:
        await stage.gate(True)
        gpu = await stage.gpu("decode")
        status, answer, _ = await stage.post("/v1/completions", COMPLETION)
        assert (status, "it serves nothing here" in answer["error"]["message"]) == (404, True)
        refused = await (await stage.submit("completion", dict(COMPLETION))).last()
        assert isinstance(refused, Error)
        assert (refused.code, "there is generate" in refused.message) == (404, True)
        served = await stage.generate([65])
        await gpu.emit(await gpu.got(), [66], "length")
        assert isinstance(await served.last(), Done)
