"""A request whose actor has died goes on with another, from the token that it had come to."""

import pytest

from messages import codec
from messages.submit import Done, Error
from tests.conftest import eventually
from tests.processor.stage import Stage, refuse, silent

pytestmark = pytest.mark.nats


async def test_a_death_before_the_first_token_is_not_seen_by_the_client(pair: Stage) -> None:
    prefill, doomed = await pair.gpu("prefill"), await pair.gpu("decode", 0)
    talk = await pair.generate([1, 2, 3], max_tokens=5)
    one = await prefill.got()
    await doomed.got()
    other = await pair.gpu("decode", 1)
    await doomed.die()
    again = await other.got()
    assert (again.attempt, (await prefill.got()).attempt) == (2, 2)
    assert (await prefill.aborted()).attempt == 1
    assert one.bootstrap != again.bootstrap
    await other.emit(again, [7, 8], "length")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [7, 8]


async def test_a_death_in_mid_stream_is_a_pause(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await stage.generate([1, 2, 3], max_tokens=6, temperature=0)
    job = await doomed.got()
    await doomed.emit(job, [11, 12])
    await talk.tokens_come(2)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    again = await other.got()
    assert codec.unpack_tokens(again.prompt) == [1, 2, 3, 11, 12]
    assert (again.sampling.max_tokens, again.attempt) == (4, 2)
    await other.emit(again, [13, 14, 15, 16], "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert talk.token_ids == [11, 12, 13, 14, 15, 16]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.resumed) == (3, 6, False)


async def test_a_newer_generation_means_that_the_older_is_over(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await stage.generate([1], max_tokens=2, temperature=1)
    job = await doomed.got()
    await doomed.emit(job, [11])
    await talk.tokens_come(1)
    registry = await stage.bus.bucket(stage.subjects.registry_bucket)
    await registry.put(stage.subjects.generation_key(doomed.slot), b"2")
    await eventually(lambda: doomed.slot not in stage.service.view.seats)
    await doomed.emit(job, [66, 67, 68])
    newer = await stage.gpu("decode", 0, generation=2)
    again = await newer.got()
    assert again.generation == 2
    await newer.emit(again, [12], "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.token_ids, done.resumed) == ([11, 12], True)


async def test_a_request_that_two_actors_died_of_ends(stage: Stage) -> None:
    first = await stage.gpu("decode", 0)
    talk = await stage.generate([1])
    await first.emit(await first.got(), [11])
    await talk.tokens_come(1)
    await first.die()
    second = await stage.gpu("decode", 1)
    await second.emit(await second.got(), [12])
    await talk.tokens_come(2)
    await second.die()
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 500
    assert "died" in error.message


async def test_who_died_before_accepting_did_not_die_of_it(stage: Stage) -> None:
    first, second = await stage.gpu("decode", 0), await stage.gpu("decode", 1, act=refuse(503))
    talk = await stage.generate([1])
    await first.got()
    second.act = silent
    await second.beat()
    await first.die()
    while not second.work.empty() or not stage.service.view.seats[second.slot].own:
        await second.got()
    await second.die()
    third = await stage.gpu("decode", 2)
    await third.emit(await third.got(), [5], "length")
    assert isinstance(await talk.last(), Done)


async def test_what_is_counted_from_the_first_token_is_counted_on(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await stage.generate([1], min_tokens=3, max_tokens=9)
    job = await doomed.got()
    assert (job.sampling.min_tokens, job.sampling.max_tokens) == (3, 9)
    await doomed.emit(job, [11])
    await talk.tokens_come(1)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    again = await other.got()
    assert (again.sampling.min_tokens, again.sampling.max_tokens) == (2, 8)
    await other.emit(again, [12, 13], "stop")
    assert isinstance(await talk.last(), Done)


async def test_prefill_may_die_after_the_hand_over(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1])
    await prefill.emit(await prefill.got(), [], "prefilled")
    await eventually(lambda: pair.service.view.seats[prefill.slot].own == 0)
    await prefill.die()
    await eventually(lambda: prefill.slot not in pair.service.view.seats)
    job = await decode.got()
    await decode.emit(job, [5], "stop")
    done = await talk.last()
    assert isinstance(done, Done)
    assert job.attempt == 1
