"""Frames of tokens: each taken once and in order, acknowledged, asked for again, and given up for a new attempt."""

import pytest

from messages import codec
from messages.frames import Ack, Finish, Hello, Item
from messages.submit import Done, Error
from tests.conftest import NatsServer, eventually
from tests.processor.stage import Stage

pytestmark = pytest.mark.nats


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


async def test_what_comes_together_is_told_as_one(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", max_tokens=9)
    job = await decode.got()
    for text in ("so", "me ", "text"):
        stage.service.inbox.take(decode.frame(decode.item(job, stage.ids(text))))
    stage.service.dispatcher.read()
    await talk.tokens_come(len(stage.ids("so") + stage.ids("me ") + stage.ids("text")))
    assert [delta.text for delta in talk.deltas] == ["some text"]
    await decode.emit(job, [], "stop")
    done = await talk.last()
    assert isinstance(done, Done)
    assert done.usage.completion_tokens == len(talk.token_ids)
    assert stage.service.traffic().kinds["completion"].completion_tokens == len(talk.token_ids)


async def test_an_end_that_comes_together_with_tokens_loses_nothing_of_what_came_before_it(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.generate([1], max_tokens=9)
    job = await decode.got()
    for tokens, finish in (([10], None), ([11, 12], None), ([], Finish("length"))):
        stage.service.inbox.take(decode.frame(decode.item(job, tokens, finish)))
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.token_ids, done.finish_reason, done.usage.completion_tokens) == ([10, 11, 12], "length", 3)


async def test_a_stop_string_in_the_middle_of_what_comes_together_cuts_what_came_after_it(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talk = await stage.complete("x", stop=["END"], max_tokens=50)
    job = await decode.got()
    texts = ["some text", "E", "N", "D", " and more", " and more"]
    for text in texts:
        stage.service.inbox.take(decode.frame(decode.item(job, stage.ids(text))))
    stage.service.dispatcher.read()
    done = await talk.last()
    assert isinstance(done, Done)
    assert (talk.text, done.finish_reason) == ("some text", "stop")
    assert done.usage.completion_tokens == sum(len(stage.ids(text)) for text in texts[:4])
    assert (await decode.aborted()).request == talk.id


async def test_a_death_before_tokens_are_read_goes_on_after_them(stage: Stage) -> None:
    decode, other = await stage.gpu("decode"), await stage.gpu("decode", 1)
    talk = await stage.generate([1], max_tokens=5, temperature=0)
    await eventually(lambda: not decode.work.empty() or not other.work.empty())
    first, second = (decode, other) if not decode.work.empty() else (other, decode)
    job = await first.got()
    stage.service.inbox.take(first.frame(first.item(job, [10, 11])))
    stage.service.dispatcher.lost(stage.service.view.seats[first.slot])
    again = await second.got()
    assert codec.unpack_tokens(again.prompt) == [1, 10, 11]
    await second.emit(again, [12, 13, 14], "length")
    assert isinstance(await talk.last(), Done)
    assert talk.token_ids == [10, 11, 12, 13, 14]


async def test_tokens_that_cannot_be_read_end_their_request_alone(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    talks = [await stage.generate([1], max_tokens=5) for _ in range(2)]
    jobs = {job.request: job for job in [await decode.got(), await decode.got()]}
    broken, whole = (jobs[talk.id] for talk in talks)
    items = [Item(broken.request, broken.attempt, 0, b"odd"), decode.item(whole, [10])]
    await decode.send(whole, decode.frame(*items))
    error = await talks[0].last()
    assert isinstance(error, Error) and error.code == 500
    await decode.emit(whole, [11], "stop")
    assert isinstance(await talks[1].last(), Done)
    assert talks[1].token_ids == [10, 11]
