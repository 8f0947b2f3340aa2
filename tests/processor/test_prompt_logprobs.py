"""Log-probabilities of a prompt: nothing is told before they are there, whoever ends first."""

from pathlib import Path

import pytest

from messages import codec
from messages.frames import Finish
from messages.submit import Done, Error
from messages.work import Job
from tests.conftest import NatsServer, eventually
from tests.processor.stage import Conversation, Gpu, Stage, raised

pytestmark = pytest.mark.nats

PROMPT = [5, 6, 7]
OF_PROMPT: list[codec.Ranked] = [(-1.0, [(6, -1.0)]), (-2.0, [(9, -0.5)])]
OF_TOKEN: codec.Ranked = (-0.25, [(8, -0.25)])


async def asked(stage: Stage, **fields: object) -> Conversation:
    """Ask for an echo and log-probabilities."""
    return await stage.submit("completion", {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 2} | fields)


async def prefilled(prefill: Gpu, job: Job, ranked: list[codec.Ranked] | None) -> None:
    """Say that the prompt has been computed."""
    item = prefill.item(job, [], Finish("prefilled", 0, "", 3, 0, 1), ranked)
    await prefill.send(job, prefill.frame(item))


async def decoded(decode: Gpu, job: Job, finish: str | None = "length") -> None:
    """Give two tokens, and the finish."""
    done = None if finish is None else Finish(finish, 0, "", 3, 2, 0)
    await decode.send(job, decode.frame(decode.item(job, [8, 8], done, [OF_TOKEN] * 2)))


def seen(talk: Conversation) -> list[tuple[int, float | None]]:
    """The tokens that were told, with their log-probabilities."""
    return [(entry.id, entry.logprob) for delta in talk.deltas for entry in delta.logprobs]


WHOLE = [(5, None), (6, -1.0), (7, -2.0), (8, -0.25), (8, -0.25)]


@pytest.mark.parametrize("first", ["prefill", "decode"])
async def test_they_come_first_whoever_ends_first(pair: Stage, first: str) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await asked(pair)
    ahead, job = await prefill.got(), await decode.got()
    assert (job.sampling.prompt_logprobs, ahead.sampling.prompt_logprobs, job.sampling.logprobs) == (True, True, 1)
    if first == "prefill":
        await prefilled(prefill, ahead, OF_PROMPT)
        await decoded(decode, job)
    else:
        await decoded(decode, job)
        await eventually(lambda: all(known.held == "length" for known in pair.service.journal))
        assert talk.deltas == []
        await prefilled(prefill, ahead, OF_PROMPT)
    last = await talk.last()
    assert isinstance(last, Done)
    assert seen(talk) == WHOLE
    assert talk.deltas[0].text.startswith(pair.tokenizer.pieces.of_token(5).decode("utf-8", "replace"))
    assert len(pair.service.journal) == 0


async def test_a_stop_string_may_come_before_them(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    word = pair.tokenizer.pieces.of_token(8).decode()
    talk = await asked(pair, stop=word, max_tokens=50)
    ahead, job = await prefill.got(), await decode.got()
    await decoded(decode, job, None)
    await eventually(lambda: all(known.held == "stop" for known in pair.service.journal))
    await prefilled(prefill, ahead, OF_PROMPT)
    last = await talk.last()
    assert isinstance(last, Done)
    assert (last.finish_reason, seen(talk)) == ("stop", WHOLE[:4])
    assert (await decode.aborted()).request == job.request


@pytest.mark.parametrize("ranked", [None, OF_PROMPT[:1]])
async def test_prefill_that_does_not_tell_them_is_an_error(pair: Stage, ranked: list[codec.Ranked] | None) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await asked(pair)
    await prefilled(prefill, await prefill.got(), ranked)
    await decoded(decode, await decode.got())
    error = await talk.last()
    assert isinstance(error, Error)
    assert (error.code, "the prompt's log-probabilities" in error.message) == (500, True)


async def test_prefill_that_dies_before_it_told_them_is_an_error_if_tokens_came(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await asked(pair)
    await prefill.got()
    await decoded(decode, await decode.got())
    await eventually(lambda: all(known.held == "length" for known in pair.service.journal))
    await prefill.die()
    error = await talk.last()
    assert isinstance(error, Error)
    assert (error.code, "the prompt's log-probabilities" in error.message) == (500, True)


async def test_what_has_been_told_is_not_asked_for_again(nats_server: NatsServer) -> None:
    async with raised(nats_server.url) as stage:
        await stage.gate(True)
        doomed = await stage.gpu("decode", 0)
        talk = await asked(stage)
        job = await doomed.got()
        await doomed.send(job, doomed.frame(doomed.item(job, [], None, OF_PROMPT)))
        await eventually(lambda: not any(known.awaiting for known in stage.service.journal))
        await doomed.die()
        other = await stage.gpu("decode", 1)
        again = await other.got()
        assert (again.sampling.prompt_logprobs, again.sampling.logprobs) == (False, 1)
        await decoded(other, again)
        assert isinstance(await talk.last(), Done)
        assert seen(talk) == WHOLE


async def test_more_than_nats_can_carry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.conf").write_text("max_payload: 8192")
    server = NatsServer(tmp_path / "jetstream", "-c", str(tmp_path / "small.conf"))
    server.start()
    try:
        async with raised(server.url) as stage:
            await stage.gate(True)
            error = await (await asked(stage, prompt=[5] * 1_000, logprobs=20)).last()
            assert isinstance(error, Error)
            assert (error.code, "a prompt of 1000 tokens take 166048 bytes" in error.message) == (413, True)
    finally:
        server.stop()
