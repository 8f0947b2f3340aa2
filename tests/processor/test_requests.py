"""Requests over NATS as clients see them: accepted, deltas, one last word, whatever the GPU actors do."""

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.frames import Ack, Finish, Hello, Item
from messages.submit import Delta, Done, Error
from messages.work import Decode, Own, Prefill
from tests.conftest import NatsServer, eventually
from tests.processor.stage import SECONDS, Stage, accept, raised, refuse, silent

pytestmark = pytest.mark.nats


async def test_a_request_from_its_prompt_to_its_last_word(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("abc", max_tokens=9, temperature=0, top_k=5, stop_token_ids=[7])
    accepted = await talk.accepted()
    assert (accepted.id, accepted.attempt, accepted.owner) == (talk.id, 1, "demo-processor-0-g1")
    job = await decode.got()
    assert isinstance(job, Decode)
    assert codec.unpack_tokens(job.prompt) == stage.ids("abc")
    assert (job.sampling.max_tokens, job.sampling.temperature, job.sampling.top_k) == (9, 0, 5)
    assert 7 in job.sampling.stop_token_ids
    assert (job.generation, job.out, job.bootstrap) == (1, "demo-processor-0-g1", None)
    await decode.emit(job, stage.ids("hello "))
    await talk.tokens_come(len(stage.ids("hello ")))
    await decode.emit(job, stage.ids("world"), "stop")
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, talk.token_ids) == ("hello world", stage.ids("hello ") + stage.ids("world"))
    assert (done.finish_reason, done.resumed) == ("stop", False)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(stage.ids("abc")), len(talk.token_ids))
    assert done.usage.cached_tokens == 3


async def test_chat_is_rendered_and_msgpack_answered_in_kind(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    reply = stage.bus.inbox()
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(msg: object) -> None:
        answers.put_nowait(getattr(msg, "data", b""))

    await stage.bus.subscribe(reply, take)
    subject = stage.subjects.submit("demo", "chat")
    headers = {"content-type": codec.MSGPACK}
    await stage.bus.publish(subject, codec.to_msgpack(body), reply=reply, headers=headers)
    job = await decode.got()
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert codec.unpack_tokens(job.prompt) == stage.ids(rendered)
    await decode.emit(job, stage.ids("yes"), "stop")
    from messages.submit import Answer

    async with asyncio.timeout(SECONDS):
        got = [codec.msgpack_decoder(Answer).decode(await answers.get()) for _ in range(3)]
    assert isinstance(got[1], Delta)
    assert got[1].text == "yes"
    assert isinstance(got[2], Done)


async def test_what_piles_up_is_sent_as_one(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1, 2, 3], max_tokens=50)
    job = await decode.got()
    items = [decode.item(job, [10 + number]) for number in range(20)]
    await decode.send(job, decode.frame(*items))
    await decode.emit(job, [], "length")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == list(range(10, 30))
    assert len(talk.deltas) == 1
    assert talk.text == ""


async def test_a_stop_string_ends_the_stream_and_aborts_decode(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", stop=["END"], max_tokens=50)
    job = await decode.got()
    ids = stage.ids("some textE") + stage.ids("ND and more")
    for at in ids:
        await decode.emit(job, [at])
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, done.finish_reason) == ("some text", "stop")
    assert (await decode.aborted()).request == talk.id
    assert done.usage.completion_tokens < len(ids)


async def test_the_token_that_ended_a_stream_is_not_text(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", skip_special_tokens=False, stop_token_ids=stage.ids("!"))
    job = await decode.got()
    ids = stage.ids("<|im_start|>so!")
    await decode.send(job, decode.frame(decode.item(job, ids, Finish("stop", matched=ids[-1]))))
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, talk.token_ids, done.usage.completion_tokens) == ("<|im_start|>so", ids, len(ids))


async def test_prefill_and_decode_are_told_at_the_same_moment_and_meet(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3], max_tokens=5)
    one, other = await prefill.got(), await decode.got()
    assert isinstance(one, Prefill)
    assert isinstance(other, Decode)
    assert one.bootstrap is not None
    assert one.bootstrap == other.bootstrap
    assert (one.bootstrap.host, one.bootstrap.port) == ("127.0.0.1", 9)
    assert one.bootstrap.room < 2**63
    await prefill.emit(one, [], "prefilled")
    await eventually(lambda: pair.service.view.seats[prefill.slot].own == 0)
    await decode.emit(other, [4, 5], "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert done.usage.cached_tokens == 3
    assert prefill.aborts.empty()
    assert decode.aborts.empty()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_when_one_side_fails_the_other_is_aborted_and_the_real_error_told(pair: Stage, role: str) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3])
    one, other = await prefill.got(), await decode.got()
    if role == "prefill":
        await prefill.emit(one, [], "error", 500, "out of memory")
        assert (await decode.aborted()).request == talk.id
    else:
        await decode.emit(other, [], "error", 500, "out of memory")
        assert (await prefill.aborted()).request == talk.id
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 500
    assert "out of memory" in error.message
    assert f"demo-{role}-0#1" in error.message


async def test_an_error_that_tells_of_the_other_sides_death_is_not_told(pair: Stage) -> None:
    doomed, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3])
    job = await decode.got()
    await doomed.deafen()
    await decode.emit(job, [], "error", 500, "KV transfer failed")
    prefill = await pair.gpu("prefill", 1)
    await prefill.emit(await prefill.got(), [], "prefilled")
    again = await decode.got()
    assert again.attempt > 1
    await decode.emit(again, [5], "stop")
    assert isinstance(await talk.last(), Done)


@pytest.mark.parametrize("code", [409, 429, 503])
async def test_a_refusal_leads_at_once_to_another_slot(stage: Stage, code: int) -> None:
    full = await stage.gpu("decode", 0, act=refuse(code))
    talk = await stage.generate([1], max_tokens=3)
    assert (await full.got()).attempt == 1
    other = await stage.gpu("decode", 1)
    job = await other.got()
    assert job.attempt == 2
    await other.emit(job, [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_refusal_of_the_request_itself_is_told(stage: Stage) -> None:
    await stage.gpu("decode", act=refuse(400))
    error = await (await stage.generate([1])).last()
    assert isinstance(error, Error)
    assert (error.code, "says 400" in error.message) == (400, True)


async def test_nobody_there_leads_at_once_to_another_slot(stage: Stage) -> None:
    gone = await stage.gpu("decode", 0)
    await gone.deafen()
    talk = await stage.generate([1], max_tokens=3)
    await talk.accepted()
    other = await stage.gpu("decode", 1)
    await other.emit(await other.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_silent_slot_is_left_for_another_and_told_to_abort(stage: Stage) -> None:
    mute = await stage.gpu("decode", 0, act=silent)
    talk = await stage.generate([1], max_tokens=3)
    await mute.got()
    other = await stage.gpu("decode", 1)
    await other.emit(await other.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)
    assert (await mute.aborted()).attempt == 1


async def test_a_refused_request_waits_for_a_change_and_does_not_spin(stage: Stage) -> None:
    decode = await stage.gpu("decode", act=refuse(429))
    talk = await stage.generate([1], max_tokens=3)
    await decode.got()
    await eventually(lambda: len(stage.service.dispatcher.waiting) == 1)
    attempts = stage.service.dispatcher.attempts
    for _ in range(5):
        await stage.bus.flush()
    assert stage.service.dispatcher.attempts == attempts
    decode.act = lambda gpu, job: None
    await decode.beat(in_flight=0)
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_full_actor_is_not_asked_but_waited_for(stage: Stage) -> None:
    decode = await stage.gpu("decode", capacity=1)
    first = await stage.generate([1], max_tokens=3)
    job = await decode.got()
    second = await stage.generate([2], max_tokens=3)
    await second.accepted()
    assert decode.work.empty()
    await decode.emit(job, [5], "stop")
    assert isinstance(await first.last(), Done)
    await decode.emit(await decode.got(), [6], "stop")
    assert isinstance(await second.last(), Done)


async def test_the_load_decides_between_slots(stage: Stage) -> None:
    busy, idle = await stage.gpu("decode", 0, capacity=64), await stage.gpu("decode", 1, capacity=64)
    await busy.beat(in_flight=40, queued=10, kv_used=90, kv_total=100)
    await idle.beat(in_flight=2, kv_used=1, kv_total=100)
    await eventually(lambda: all(seat.beat is not None for seat in stage.service.view.seats.values()))
    for number in range(8):
        await stage.generate([number + 1])
    for _ in range(8):
        await idle.got()
    assert busy.work.empty()


# Death.


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


# Frames.


async def test_frames_are_taken_once_in_order_and_asked_for_again(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=9)
    job = await decode.got()
    first, second, third = (decode.frame(decode.item(job, [at])) for at in (10, 11, 12))
    await decode.send(job, first)
    await decode.send(job, first)
    await decode.send(job, third)
    await eventually(lambda: Hello("demo-processor-0-g1", 1) in decode.receipts)
    await decode.send(job, second)
    await decode.send(job, third)
    await decode.emit(job, [13], "stop")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [10, 11, 12, 13]
    assert (stage.service.inbox.repeats, stage.service.inbox.gaps) == (1, 1)
    await eventually(lambda: Ack("demo-processor-0-g1", 4) in decode.receipts)


async def test_a_gap_is_asked_for_until_it_is_filled(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=9)
    job = await decode.got()
    first, second, third = (decode.frame(decode.item(job, [at])) for at in (10, 11, 12))
    await decode.send(job, first)
    await decode.send(job, third)
    await eventually(lambda: decode.receipts.count(Hello("demo-processor-0-g1", 1)) >= 3)
    await decode.send(job, second)
    await decode.send(job, third)
    await decode.emit(job, [], "stop")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [10, 11, 12]


async def test_acknowledgements_come_every_64_frames(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.processor.inbox.ACK_SECONDS", 60.0)
    decode = await stage.gpu("decode")
    await stage.generate([1])
    job = await decode.got()
    for at in range(64):
        await decode.emit(job, [at])
    await eventually(lambda: Ack("demo-processor-0-g1", 64) in decode.receipts)


async def test_tokens_that_are_lost_for_good_begin_a_new_attempt(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=5, temperature=0)
    job = await decode.got()
    await decode.emit(job, [10])
    await talk.tokens_come(1)
    decode.frame(decode.item(job, [11]))
    await decode.send(job, decode.frame(decode.item(job, [12]), base=3))
    again = await decode.got()
    assert (again.attempt, codec.unpack_tokens(again.prompt)) == (2, [1, 10])
    late = Item(job.request, job.attempt, 0, codec.pack_tokens([66, 67]))
    await decode.send(job, decode.frame(late))
    await decode.emit(again, [11, 12, 13, 14], "length")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [10, 11, 12, 13, 14]


async def test_work_that_nobody_wants_is_aborted(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    job = await decode.got()
    await stage.bus.publish(stage.subjects.cancel(talk.id))
    assert (await decode.aborted()).request == talk.id
    await decode.emit(job, [5])
    assert (await decode.aborted()).request == talk.id


# Ends.


async def test_cancelling_aborts_everywhere_and_is_the_last_word(pair: Stage) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1])
    await prefill.got()
    await decode.got()
    await pair.bus.publish(pair.subjects.cancel(talk.id))
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 499
    assert (await prefill.aborted()).request == (await decode.aborted()).request == talk.id
    assert len(pair.service.journal) == 0


async def test_the_deadline_is_a_last_word(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], timeout=0.2)
    assert (await decode.got()).ttl < 0.201
    error = await talk.last()
    assert isinstance(error, Error)
    assert error.code == 408
    assert (await decode.aborted()).request == talk.id


async def test_a_restart_of_nats_loses_nothing(stage: Stage, nats_server: NatsServer) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=9)
    job = await decode.got()
    await decode.emit(job, [10])
    await talk.tokens_come(1)
    nats_server.stop()
    lost, later = decode.frame(decode.item(job, [11])), decode.frame(decode.item(job, [12]))
    nats_server.start()
    both = (stage.bus, stage.service._bus)
    await eventually(lambda: all(bus.reconnects == 1 for bus in both), 10)
    for bus in both:
        await bus.flush()
    await decode.send(job, later)
    await eventually(lambda: Hello("demo-processor-0-g1", 1) in decode.receipts)
    await decode.send(job, lost)
    await decode.send(job, later)
    await decode.emit(job, [], "stop")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [10, 11, 12]


async def test_what_nobody_answered_is_asked_again_when_nats_is_back(stage: Stage, nats_server: NatsServer) -> None:
    decode = await stage.gpu("decode", act=silent)
    stage.service.asks._seconds = 60.0
    talk = await stage.generate([1], max_tokens=3)
    first = await decode.got()
    decode.act = accept
    nats_server.stop()
    nats_server.start()
    again = await decode.got()
    assert (again.request, again.attempt) == (first.request, first.attempt)
    await decode.emit(again, [5], "stop")
    assert isinstance(await talk.last(), Done)


# Ids and resuming.


async def test_the_same_client_asking_again_is_told_again(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    await stage.submit("generate", {"token_ids": [1], "id": talk.id}, reply=talk.reply)
    await talk.until(lambda: len(talk.answers) == 2)
    assert talk.answers[0] == talk.answers[1]
    other = await stage.submit("generate", {"token_ids": [1], "id": talk.id})
    error = await other.last()
    assert isinstance(error, Error)
    assert (error.code, error.id) == (409, talk.id)
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)
    assert decode.work.empty()


async def test_a_request_is_resumed_where_the_client_was(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    had = stage.ids("one tw")
    talk = await stage.complete("count: ", max_tokens=20, temperature=0, resume={"attempt": 3, "token_ids": had})
    assert (await talk.accepted()).attempt == 4
    job = await decode.got()
    assert codec.unpack_tokens(job.prompt) == stage.ids("count: ") + had
    assert job.sampling.max_tokens == 20 - len(had)
    await decode.emit(job, stage.ids("o three"), "length")
    done = await talk.last()
    assert isinstance(done, Done)
    assert talk.deltas[0].position == len(had)
    assert talk.text == "o three"
    assert done.usage.completion_tokens == len(had) + len(stage.ids("o three"))


async def test_half_a_character_is_carried_over_a_resume(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    ids = stage.ids("€")
    assert len(ids) == 3
    talk = await stage.complete("x", max_tokens=9, resume={"attempt": 1, "token_ids": ids[:2]})
    await decode.emit(await decode.got(), ids[2:], "length")
    await talk.last()
    assert talk.deltas[0].text == "€"


async def test_a_higher_claim_takes_a_request_away_without_a_word(stage: Stage, bus: Bus) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    await decode.got()
    own = Own(request=talk.id, attempt=2, owner="demo-processor-1-g1")
    await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(own))
    assert (await decode.aborted()).request == talk.id
    assert len(stage.service.journal) == 0
    assert len(talk.answers) == 1
    tally = stage.service.traffic().kinds["generate"]
    assert (tally.admitted, tally.left, tally.finished, tally.failed) == (1, 1, 0, {})


async def test_the_same_claim_of_an_older_name_wins(stage: Stage, bus: Bus) -> None:
    await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    for owner, left in (("demo-processor-1-g1", 1), ("demo-processor-0-g0", 0)):
        own = Own(request=talk.id, attempt=1, owner=owner)
        await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(own))
        await bus.flush()
        await eventually(lambda left=left: len(stage.service.journal) == left)


async def test_resuming_on_the_same_processor_takes_over_from_itself(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=5, temperature=0)
    job = await decode.got()
    await decode.emit(job, [10, 11])
    await talk.tokens_come(2)
    body = {"token_ids": [1], "id": talk.id, "max_tokens": 5, "temperature": 0}
    again = await stage.submit("generate", body | {"resume": {"attempt": 1, "token_ids": [10]}})
    assert (await again.accepted()).attempt == 2
    second = await decode.got()
    await decode.emit(second, [11, 12, 13, 14], "length")
    assert isinstance(await again.last(), Done)
    assert again.deltas[0].position == 1
    assert not any(isinstance(answer, Done | Error) for answer in talk.answers)


# The gate.


async def test_held_requests_are_answered_in_order_when_the_gate_opens(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 3}) as stage:
        await stage.gate(False)
        talks = [await stage.generate([number]) for number in (1, 2, 3)]
        for talk in talks:
            await talk.accepted()
        refused = await (await stage.generate([4])).last()
        assert isinstance(refused, Error)
        assert (refused.code, refused.retry_after) == (503, 2.0)
        assert "demo-decode-0: loading" in refused.message
        decode = await stage.gpu("decode")
        assert decode.work.empty()
        await stage.gate(True, 2)
        for number, talk in enumerate(talks, 1):
            job = await decode.got()
            assert codec.unpack_tokens(job.prompt) == [number]
            await decode.emit(job, [9], "stop")
            assert isinstance(await talk.last(), Done)


async def test_an_open_gate_with_nobody_ready_holds_too(stage: Stage) -> None:
    talk = await stage.generate([1])
    await talk.accepted()
    decode = await stage.gpu("decode")
    await decode.emit(await decode.got(), [5], "stop")
    assert isinstance(await talk.last(), Done)


async def test_a_held_request_ends_at_its_deadline(stage: Stage) -> None:
    await stage.gate(False, 2)
    error = await (await stage.generate([1], timeout=0.1)).last()
    assert isinstance(error, Error)
    assert error.code == 408
    assert len(stage.service.line) == 0


async def test_no_queue_means_refusing(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 0}) as stage:
        closed = await (await stage.generate([1])).last()
        await stage.gate(True)
        nobody = await (await stage.generate([1])).last()
        decode = await stage.gpu("decode", capacity=1)
        taken = await stage.generate([1])
        job = await decode.got()
        full = await (await stage.generate([2])).last()
        await decode.emit(job, [5], "stop")
        assert isinstance(await taken.last(), Done)
    assert isinstance(closed, Error)
    assert isinstance(nobody, Error)
    assert isinstance(full, Error)
    assert [closed.code, nobody.code, full.code] == [503, 503, 429]
    assert closed.retry_after == nobody.retry_after == full.retry_after == 2.0


async def test_requests_in_flight_are_bounded(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"in_flight": 1}) as stage:
        await stage.gate(True)
        await (await stage.generate([1])).accepted()
        error = await (await stage.generate([2])).last()
    assert isinstance(error, Error)
    assert (error.code, error.retry_after) == (429, 2.0)


async def test_a_gate_that_closes_lets_finish_what_is_in(stage: Stage) -> None:
    decode = await stage.gpu("decode", 0)
    talk = await stage.generate([1], max_tokens=4, temperature=0)
    await decode.emit(await decode.got(), [5])
    await talk.tokens_come(1)
    await stage.gate(False, 2)
    other = await stage.gpu("decode", 1)
    await decode.die()
    await other.emit(await other.got(), [6], "stop")
    assert isinstance(await talk.last(), Done)


# Draining.


async def test_draining_finishes_what_is_there_and_takes_nothing_new(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1])
    job = await decode.got()
    await stage.nats.shut()
    draining = asyncio.ensure_future(stage.service.drain())
    await stage.bus.flush()
    assert (await stage.generate([2])).answers == []
    status, body, headers = await stage.post("/v1/completions", {"model": "demo", "prompt": "x"})
    assert (status, headers["Retry-After"]) == (503, "2")
    assert "draining" in body["error"]["message"]
    assert not draining.done()
    await decode.emit(job, [5], "stop")
    assert isinstance(await talk.last(), Done)
    await asyncio.wait_for(draining, SECONDS)


async def test_aborting_gives_each_its_error(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talks = [await stage.generate([number + 1]) for number in range(3)]
    for _ in talks:
        await decode.got()
    await stage.service.abort()
    for talk in talks:
        error = await talk.last()
        assert isinstance(error, Error)
        assert error.code == 503


# Last words and claims that were lost on the way.


@pytest.mark.parametrize(
    ("more", "had", "reason"),
    [({"max_tokens": 2}, [10, 11], "length"), ({"max_tokens": 9, "stop_token_ids": [12]}, [10, 12], "stop")],
)
async def test_a_client_that_has_it_all_gets_the_last_word_again(
    stage: Stage, more: dict[str, Any], had: list[int], reason: str
) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], resume={"attempt": 1, "token_ids": had}, **more)
    done = await talk.last()
    assert isinstance(done, Done)
    assert (done.finish_reason, done.attempt, done.usage.completion_tokens, talk.deltas) == (reason, 2, 2, [])
    assert decode.work.empty()
    assert len(stage.service.journal) == 0


async def test_an_owner_says_again_that_it_is_one(stage: Stage, bus: Bus) -> None:
    """Who took the request later, because the client had not heard of the first, has not heard the claim either."""
    await stage.gpu("decode")
    talk = await stage.generate([1])
    await talk.accepted()
    heard: asyncio.Queue[Own] = asyncio.Queue()

    async def hear(msg: Msg) -> None:
        heard.put_nowait(codec.from_msgpack(msg.data, Own))

    await bus.subscribe(stage.subjects.own(talk.id), hear)
    await bus.flush()
    later = Own(request=talk.id, attempt=1, owner="demo-processor-1-g1")
    await bus.publish(stage.subjects.own(talk.id), codec.to_msgpack(later))
    async with asyncio.timeout(SECONDS):
        claims = [await heard.get(), await heard.get()]
    assert claims[1].owner < later.owner
    assert len(stage.service.journal) == 1
