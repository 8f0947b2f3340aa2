"""Requests for embeddings from door to door: their forms, batches over encoders, and encoders that die meanwhile."""

import asyncio
import base64
from array import array
from typing import Any

import msgspec
import pytest

from actors.processor.embeddings import embedder
from messages.frames import Finish
from messages.lifecycle import Child
from messages.submit import Done, Error
from tests.conftest import NatsServer, eventually
from tests.embeddings.stage import SIZE, Enc, Stage, raised, vector
from tests.processor.stage import refuse, silent

pytestmark = pytest.mark.nats

TEXTS = ["one", "two three", "four"]


async def test_every_form_of_input_over_http_and_both_forms_of_output(stage: Stage) -> None:
    await stage.encoder(answers=True)
    ids = [stage.ids(text) for text in TEXTS]
    for given, wanted in (
        ("one", ids[:1]),
        (TEXTS, ids),
        (ids[1], ids[1:2]),
        (ids, ids),
    ):
        status, answer = await stage.post({"model": "demo", "input": given})
        assert status == 200, answer
        assert [entry["index"] for entry in answer["data"]] == list(range(len(wanted)))
        assert [entry["embedding"] for entry in answer["data"]] == [vector(tokens) for tokens in wanted]
        tokens = sum(map(len, wanted))
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert (answer["object"], answer["model"]) == ("list", "demo")
        _, packed = await stage.post({"model": "demo", "input": given, "encoding_format": "base64"})
        read = [array("f", base64.b64decode(entry["embedding"])).tolist() for entry in packed["data"]]
        assert read == [vector(tokens) for tokens in wanted]


async def test_over_nats_vectors_come_packed_and_in_order_then_one_last_word(stage: Stage) -> None:
    await stage.encoder(answers=True)
    talk = await stage.submit(TEXTS, dimensions=2)
    last = await talk.last()
    assert isinstance(last, Done)
    ids = [stage.ids(text) for text in TEXTS]
    assert talk.vectors == [vector(tokens, 2) for tokens in ids]
    assert last.usage.prompt_tokens == sum(map(len, ids))
    await talk.accepted()


async def test_a_batch_is_spread_over_the_encoders_and_put_together_in_order(stage: Stage) -> None:
    one, other = await stage.encoder(0), await stage.encoder(1)
    inputs = [[number] for number in range(100)]
    talk = await stage.submit(inputs)
    parts: list[tuple[Enc, Any]] = []
    while sum(len(part.lengths) for _, part in parts) < 100:
        for encoder in (one, other):
            while not encoder.work.empty():
                parts.append((encoder, encoder.work.get_nowait()))
        await asyncio.sleep(0.005)
    assert {encoder.slot for encoder, _ in parts} == {one.slot, other.slot}
    assert max(len(part.lengths) for _, part in parts) <= 32
    for encoder, part in reversed(parts):
        assert not talk.vectors
        await encoder.answer(part)
    assert isinstance(await talk.last(), Done)
    assert talk.vectors == [vector(tokens) for tokens in inputs]


async def test_a_part_of_one_that_dies_goes_to_another(stage: Stage) -> None:
    first = await stage.encoder(0)
    talk = await stage.submit(TEXTS)
    part = await first.part()
    await first.answer(part, upto=2)
    second = await stage.encoder(1)
    await first.die()
    again = await second.part()
    assert (again.prompt, again.lengths) == (part.prompt, part.lengths)
    assert again.attempt > part.attempt
    await first.answer(part)
    await second.answer(again)
    last = await talk.last()
    assert isinstance(last, Done)
    assert talk.vectors == [vector(stage.ids(text)) for text in TEXTS]
    tally = stage.service.traffic().kinds["embed"]
    assert (tally.admitted, tally.finished, tally.migrated) == (1, 1, 1)
    assert tally.prompt_tokens == last.usage.prompt_tokens
    way = stage.service.meter.way(talk.id)
    assert way is not None
    assert [(station.what, station.where) for station in way.stations] == [
        ("submitted", []),
        ("routed", ["demo-encoder-0#1"]),
        ("migrated", ["demo-encoder-0#1"]),
        ("routed", ["demo-encoder-1#1"]),
        ("finished", []),
    ]


async def test_one_that_refuses_or_is_not_there_or_gives_no_answer_is_passed_over(stage: Stage) -> None:
    for number, act in enumerate((refuse(429), refuse(503), silent)):
        await stage.encoder(number, act)
    await (await stage.encoder(3)).deafen()
    well = await stage.encoder(4, answers=True)
    talks = [await stage.submit(TEXTS) for _ in range(8)]
    for talk in talks:
        assert isinstance(await talk.last(10), Done)
        assert talk.vectors == [vector(stage.ids(text)) for text in TEXTS]
    assert well.seq


async def test_what_an_encoder_that_hangs_has_goes_to_another(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "SILENT", 0.5)
    hung = await stage.encoder(0)
    talk = await stage.submit(TEXTS)
    part = await hung.part()
    await stage.encoder(1, answers=True)
    assert isinstance(await talk.last(), Done)
    assert talk.vectors == [vector(stage.ids(text)) for text in TEXTS]
    told = await hung.aborted()
    assert (told.request, told.attempt) == (part.request, part.attempt)


async def test_what_an_encoder_has_whose_engine_is_stopped_goes_to_another_at_once(stage: Stage) -> None:
    stopped = await stage.encoder(0)
    talk = await stage.submit(TEXTS)
    part = await stopped.part()
    await stage.encoder(1, answers=True)
    await stopped.beat(in_flight=1, children=[Child(pid=7, state="T", cpu_seconds=0.0)])
    assert isinstance(await talk.last(), Done)
    assert talk.vectors == [vector(stage.ids(text)) for text in TEXTS]
    assert (await stopped.aborted()).request == part.request


async def test_an_encoder_that_hangs_gets_no_more_until_it_takes_a_step(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "SILENT", 0.3)
    monkeypatch.setattr(embedder, "LOOK", 0.05)
    hung = await stage.encoder(0)
    first = await stage.submit("one")
    await hung.part()
    await stage.encoder(1, answers=True)
    assert isinstance(await first.last(), Done)
    for _ in range(20):
        assert isinstance(await (await stage.submit("two")).last(), Done)
    assert hung.work.empty()
    seat = stage.service.view.seats[hung.slot]
    hung.steps = 4
    await eventually(lambda: seat.beat is not None and seat.beat.steps == 4)
    later = [await stage.submit("three") for _ in range(20)]
    await hung.part()
    assert later


async def test_an_encoder_with_nobody_beside_it_is_left_to_its_work(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "SILENT", 0.1)
    monkeypatch.setattr(embedder, "LOOK", 0.05)
    looks, look = 0, stage.service.embedder._look

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    monkeypatch.setattr(stage.service.embedder, "_look", counted)
    alone = await stage.encoder(0)
    talk = await stage.submit("one")
    part = await alone.part()
    await eventually(lambda: looks > 10)
    assert alone.aborts.empty()
    await alone.answer(part)
    assert isinstance(await talk.last(), Done)


async def test_a_part_on_which_encoder_after_encoder_dies_ends_its_request(stage: Stage) -> None:
    talk = await stage.submit("one")
    for number in range(embedder.CRASHES):
        encoder = await stage.encoder(number)
        part = await encoder.part()
        await encoder.answer(part, upto=0)
        await eventually(lambda part=part: _accepted(stage, part.request))
        await encoder.die()
    last = await talk.last()
    assert isinstance(last, Error)
    assert last.code == 500
    assert "3 encoders have failed" in last.message


def _accepted(stage: Stage, key: str) -> bool:
    part = stage.service.embedder._parts.get(key)
    return part is not None and part.accepted


async def test_an_engines_error_goes_to_another_and_a_refused_input_ends_it(stage: Stage) -> None:
    first = await stage.encoder(0)
    talk = await stage.submit("one")
    part = await first.part()
    second = await stage.encoder(1)
    await first.answer(part, upto=0, finish=Finish("error", 500, "out of memory"))
    await second.answer(await second.part(), upto=0, finish=Finish("error", 400, "cannot be had"))
    last = await talk.last()
    assert isinstance(last, Error)
    assert (last.code, "cannot be had" in last.message) == (400, True)


async def test_deadline_and_cancel_are_told_to_whoever_works_on_it(stage: Stage) -> None:
    encoder = await stage.encoder()
    late = await stage.submit("one", timeout=0.3)
    part = await encoder.part()
    assert 0 < part.ttl < 0.301
    last = await late.last()
    assert isinstance(last, Error)
    assert last.code == 408
    assert (await encoder.aborted()).request == part.request
    dropped = await stage.submit("two")
    part = await encoder.part()
    await stage.bus.publish(f"troupe.v1.cancel.{dropped.id}")
    last = await dropped.last()
    assert isinstance(last, Error)
    assert last.code == 499
    assert (await encoder.aborted()).request == part.request
    assert len(stage.service.embedder) == 0


async def test_an_http_client_that_leaves_is_worked_for_no_more(stage: Stage) -> None:
    encoder = await stage.encoder()
    asked = asyncio.ensure_future(stage.post({"model": "demo", "input": "one"}))
    part = await encoder.part()
    asked.cancel()
    assert (await encoder.aborted()).request == part.request
    await eventually(lambda: len(stage.service.embedder) == 0)


async def test_requests_wait_at_a_closed_gate_and_for_an_encoder(stage: Stage) -> None:
    await stage.gate(False)
    held = await stage.submit("one")
    await held.accepted()
    await stage.gate(True)
    await stage.encoder(answers=True)
    assert isinstance(await held.last(), Done)


async def test_what_may_wait_is_bounded(nats_server: NatsServer) -> None:
    async with raised(nats_server.url, limits={"queued": 1}) as stage:
        first = await stage.submit("one")
        await first.accepted()
        status, answer = await stage.post({"model": "demo", "input": "two"})
        assert status == 503
        assert "the gate is closed" in answer["error"]["message"]
        await stage.gate(True)
        status, answer = await stage.post({"model": "demo", "input": "two"})
        assert status == 503
        assert "nobody is ready" in answer["error"]["message"]


async def test_asking_again_with_the_same_id_is_one_request(stage: Stage) -> None:
    encoder = await stage.encoder()
    talk = await stage.submit("one")
    part = await encoder.part()
    other = await stage.submit("one", id=talk.id)
    refused = await other.last()
    assert isinstance(refused, Error)
    assert refused.code == 409
    await encoder.answer(part)
    assert isinstance(await talk.last(), Done)


async def test_many_small_requests_are_not_kept_waiting_by_a_large_one(stage: Stage) -> None:
    encoder = await stage.encoder()
    large = await stage.submit([[7, 7]] * 100)
    begun = [await encoder.part() for _ in range(4)]
    small = await stage.submit([1, 2])
    part = await encoder.part()
    assert part.request.startswith(small.id)
    await encoder.answer(part)
    assert isinstance(await small.last(), Done)
    assert all(part.request.startswith(large.id) for part in begun)
    for each in begun:
        await encoder.answer(each)
    assert isinstance(await large.last(), Done)


async def test_large_answers_are_split_so_that_each_message_fits(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.processor.embeddings.doors.LETTER_BYTES", 3 * 4 * SIZE)
    monkeypatch.setattr("actors.processor.embeddings.doors.WRITE_NUMBERS", 2 * SIZE)
    async with raised(nats_server.url) as stage:
        await stage.gate(True)
        await stage.encoder(answers=True)
        inputs = [[number] for number in range(20)]
        talk = await stage.submit(inputs)
        await talk.last()
        assert len(talk.answers) == 1 + 7 + 1
        assert talk.vectors == [vector(tokens) for tokens in inputs]
        _, answer = await stage.post(msgspec.json.encode({"model": "demo", "input": inputs}))
        assert [entry["embedding"] for entry in answer["data"]] == talk.vectors
