"""Deaths and hangs of GPU actors at every phase of a request: the client sees a pause, or the error that there is."""

import pytest

from messages import codec, poison
from messages.frames import Finish
from messages.lifecycle import Child
from messages.submit import Done, Error
from tests.conftest import NatsServer, eventually
from tests.processor.stage import Conversation, Gpu, Stage, raised, silent

pytestmark = pytest.mark.nats


async def begun(stage: Stage, gpu: Gpu, tokens: list[int], **fields: object) -> Conversation:
    """A greedy request of which a decode actor has sent so many tokens."""
    talk = await stage.generate([1, 2, 3], **{"max_tokens": 6, "temperature": 0} | fields)
    await gpu.emit(await gpu.got(), tokens)
    await talk.tokens_come(len(tokens))
    return talk


async def finished(talk: Conversation, tokens: list[int]) -> Done:
    done = await talk.last()
    assert isinstance(done, Done), done
    assert talk.token_ids == tokens
    return done


async def stop(gpu: Gpu) -> None:
    """Have an actor's heartbeat say that its engine's process is stopped."""
    await gpu.beat(in_flight=1, children=[Child(pid=7, state="T", cpu_seconds=0.0)])


# Phases.


@pytest.mark.parametrize("phase", ["told", "accepted", "transferring", "first token", "last token"])
@pytest.mark.parametrize("who", ["prefill", "decode"])
async def test_a_death_at_any_phase_is_a_pause_at_most(pair: Stage, who: str, phase: str) -> None:
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode")
    doomed, survivor = (prefill, decode) if who == "prefill" else (decode, prefill)
    if phase == "told":
        doomed.act = silent
    talk = await pair.generate([1, 2, 3], max_tokens=3, temperature=0)
    jobs = {prefill.slot: await prefill.got(), decode.slot: await decode.got()}
    sent = {"first token": [11], "last token": [11, 12, 13]}.get(phase, [])
    if sent:
        await prefill.emit(jobs[prefill.slot], [], "prefilled")
        await eventually(lambda: pair.service.view.seats[prefill.slot].own == 0)
        await decode.emit(jobs[decode.slot], sent)
        await talk.tokens_come(len(sent))
    await doomed.deafen()
    if phase == "transferring":
        # A hand-over that breaks is felt by the survivor before anybody has heard of the death.
        await survivor.emit(jobs[survivor.slot], [], "error", 500, "KV transfer failed")
    await doomed.bury()
    if who == "prefill" and sent:
        # The prompt has been handed over: its death harms nobody.
        await decode.emit(jobs[decode.slot], [11, 12, 13][len(sent) :], "length")
        assert (await finished(talk, [11, 12, 13])).attempt == 1
    elif phase == "last token":
        # All tokens have come, and only the word that they were the last is lost.
        assert (await finished(talk, sent)).finish_reason == "length"
        assert prefill.work.empty()
    else:
        if phase in ("told", "accepted"):
            assert (await survivor.aborted()).request == talk.id
        heir = await pair.gpu(doomed.role, 1)
        again = {heir.slot: await heir.got()}
        while (job := await survivor.got()).attempt != again[heir.slot].attempt:
            pass
        again[survivor.slot] = job
        prefill, decode = (heir, decode) if who == "prefill" else (prefill, heir)
        assert codec.unpack_tokens(again[decode.slot].prompt) == [1, 2, 3, *sent]
        await prefill.emit(again[prefill.slot], [], "prefilled")
        await decode.emit(again[decode.slot], [11, 12, 13][len(sent) :], "length")
        await finished(talk, [11, 12, 13])


async def test_who_accepts_what_was_withdrawn_meanwhile_is_told_to_abort_again(pair: Stage) -> None:
    """Work and aborts come by two subscriptions, of which a blocked actor may read the second first."""
    prefill, decode = await pair.gpu("prefill"), await pair.gpu("decode", act=silent)
    talk = await pair.generate([1, 2, 3], max_tokens=2, temperature=0)
    job = await decode.got()
    await pair.bus.publish(pair.subjects.cancel(talk.id))
    assert (await decode.aborted()).attempt == 1
    await decode.accept_late(job)
    assert (await decode.aborted()).attempt == 1
    assert (await prefill.aborted()).attempt == 1


async def test_a_request_waits_for_the_next_life_of_the_only_decode_whatever_the_gate_says(stage: Stage) -> None:
    """The supervisor is dead as well: nobody takes the registration away, and the gate stays as it was."""
    decode = await stage.gpu("decode")
    talk = await begun(stage, decode, [11, 12])
    await decode.deafen()
    await stage.gate(False, 2)
    later = await stage.generate([9], max_tokens=1)
    await later.accepted()
    newer = await stage.gpu("decode", 0, generation=2)
    again = await newer.got()
    assert codec.unpack_tokens(again.prompt) == [1, 2, 3, 11, 12]
    await newer.emit(again, [13], "stop")
    await finished(talk, [11, 12, 13])
    assert newer.work.empty(), "what is new waits for the gate"


async def test_a_request_that_hangs_one_actor_after_the_other_is_not_tried_a_third_time(stage: Stage) -> None:
    """It has left them before they were killed, for fear of just that, which is held against it no less."""
    first = await stage.gpu("decode", 0)
    talk = await begun(stage, first, [11])
    second = await stage.gpu("decode", 1)
    await stop(first)
    await second.emit(await second.got(), [12])
    await talk.tokens_come(2)
    await first.die()
    await stop(second)
    third = await stage.gpu("decode", 2)
    await third.got()
    await second.die()
    error = await talk.last()
    assert isinstance(error, Error)
    assert (error.code, poison.actors(error.message)) == (500, [f"{first.slot}#1", f"{second.slot}#1"])
    assert (await third.aborted()).request == talk.id


# Suspicion.


async def test_a_suspect_gets_nothing_new_and_what_it_has_goes_elsewhere(stage: Stage) -> None:
    suspect = await stage.gpu("decode", 0)
    talk = await stage.generate([1, 2, 3], max_tokens=6, temperature=0)
    job = await suspect.got()
    await suspect.emit(job, [11, 12])
    await talk.tokens_come(2)
    other = await stage.gpu("decode", 1)
    await stop(suspect)
    again = await other.got()
    assert (codec.unpack_tokens(again.prompt), again.attempt) == ([1, 2, 3, 11, 12], 2)
    assert (await suspect.aborted()).request == talk.id
    await suspect.emit(job, [66, 67])
    await other.emit(again, [13, 14, 15, 16], "length")
    await finished(talk, [11, 12, 13, 14, 15, 16])
    for _ in range(4):
        await stage.generate([5])
        await other.got()
    assert suspect.work.empty()
    await suspect.beat()
    await eventually(lambda: stage.service.view.false_alarms == 1)


async def test_with_nobody_else_there_it_stays_and_goes_on_when_the_suspect_comes_back(stage: Stage) -> None:
    only = await stage.gpu("decode")
    talk = await stage.generate([1, 2, 3], max_tokens=6, temperature=0)
    job = await only.got()
    await only.emit(job, [11, 12])
    await stop(only)
    await eventually(lambda: bool(stage.service.view.seats[only.slot].suspect))
    new = await stage.generate([9], max_tokens=1)
    await new.accepted()
    assert only.work.empty()
    await only.beat(in_flight=1)
    await only.emit(job, [13, 14, 15, 16], "length")
    done = await finished(talk, [11, 12, 13, 14, 15, 16])
    assert (done.attempt, only.aborts.empty()) == (1, True)
    await only.emit(await only.got(), [5], "length")
    assert isinstance(await new.last(), Done)


async def test_with_nobody_else_there_it_goes_to_the_next_one_that_comes(pair: Stage) -> None:
    prefill, suspect = await pair.gpu("prefill"), await pair.gpu("decode")
    talk = await pair.generate([1, 2, 3], max_tokens=4, temperature=0)
    await prefill.emit(await prefill.got(), [], "prefilled")
    await suspect.emit(await suspect.got(), [11, 12])
    await talk.tokens_come(2)
    await stop(suspect)
    await eventually(lambda: bool(pair.service.view.seats[suspect.slot].suspect))
    other = await pair.gpu("decode", 1)
    again = await other.got()
    assert codec.unpack_tokens((await prefill.got()).prompt) == [1, 2, 3, 11, 12]
    await other.emit(again, [13, 14], "length")
    await finished(talk, [11, 12, 13, 14])


# Generated anew.


async def test_greedy_with_penalties_is_generated_anew_and_nothing_is_sent_twice(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await begun(stage, doomed, [11, 12, 13], frequency_penalty=0.5, min_tokens=2)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    again = await other.got()
    assert codec.unpack_tokens(again.prompt) == [1, 2, 3]
    asked = again.sampling
    assert (asked.max_tokens, asked.min_tokens, asked.frequency_penalty) == (6, 2, 0.5)
    await other.emit(again, [11])
    await other.emit(again, [12, 13, 14])
    await talk.tokens_come(4)
    await other.emit(again, [15], "stop")
    done = await finished(talk, [11, 12, 13, 14, 15])
    assert (done.resumed, done.usage.completion_tokens, done.usage.prompt_tokens) == (False, 5, 3)


async def test_generated_anew_text_goes_on_at_the_seam_in_the_middle_of_a_character(stage: Stage) -> None:
    doomed, whole = await stage.gpu("decode", 0), stage.ids("a € b")
    talk = await stage.complete("x", max_tokens=20, temperature=0, repetition_penalty=1.2)
    await doomed.emit(await doomed.got(), whole[:3])
    await talk.tokens_come(3)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    await other.emit(await other.got(), whole, "stop")
    await finished(talk, whole)
    assert talk.text == "a € b"


async def test_it_is_generated_anew_a_second_time_when_only_part_of_it_had_come_again(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await begun(stage, doomed, [11, 12, 13], presence_penalty=0.5)
    second = await stage.gpu("decode", 1)
    await stop(doomed)
    await second.emit(await second.got(), [11, 12])
    third = await stage.gpu("decode", 2)
    await stop(second)
    await third.emit(await third.got(), [11, 12, 13, 14], "stop")
    await finished(talk, [11, 12, 13, 14])


@pytest.mark.parametrize(("tokens", "finish"), [([11, 99], None), ([11], "stop"), ([11], "length")])
async def test_what_comes_out_otherwise_is_an_error_that_says_so(
    stage: Stage, tokens: list[int], finish: str | None
) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await begun(stage, doomed, [11, 12, 13], frequency_penalty=0.5)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    await other.emit(await other.got(), tokens, finish)
    error = await talk.last()
    assert isinstance(error, Error)
    assert (error.code, "generated it anew" in error.message, "not what had been sent" in error.message) == (
        500,
        True,
        True,
    )
    assert talk.token_ids == [11, 12, 13]


async def test_sampled_with_penalties_goes_on_and_says_that_it_was_resumed(stage: Stage) -> None:
    doomed = await stage.gpu("decode", 0)
    talk = await begun(stage, doomed, [11, 12], frequency_penalty=0.5, temperature=0.8)
    other = await stage.gpu("decode", 1)
    await doomed.die()
    again = await other.got()
    assert codec.unpack_tokens(again.prompt) == [1, 2, 3, 11, 12]
    await other.emit(again, [13], "stop")
    assert (await finished(talk, [11, 12, 13])).resumed


async def test_a_client_of_a_dead_processor_has_it_generated_anew_as_well(stage: Stage) -> None:
    decode = await stage.gpu("decode")
    more = {"max_tokens": 9, "temperature": 0, "repetition_penalty": 1.3}
    talk = await stage.generate([1, 2, 3], resume={"attempt": 1, "token_ids": [11, 12]}, **more)
    job = await decode.got()
    assert (codec.unpack_tokens(job.prompt), job.sampling.max_tokens) == ([1, 2, 3], 9)
    await decode.send(job, decode.frame(decode.item(job, [11, 12, 13], Finish("stop"))))
    done = await talk.last()
    assert isinstance(done, Done)
    assert [(delta.position, delta.token_ids) for delta in talk.deltas] == [(2, [13])]


@pytest.mark.parametrize("temperature", [0, 0.7])
async def test_a_grammar_begins_with_the_first_token(nats_server: NatsServer, temperature: float) -> None:
    async with raised(nats_server.url, engine="sglang") as stage:
        await stage.gate(True)
        doomed = await grammatical(stage, 0)
        talk = await begun(stage, doomed, stage.ids("ab"), regex="ab*", temperature=temperature)
        other = await grammatical(stage, 1)
        await doomed.die()
        if temperature:
            more = {"regex": "ab*", "temperature": temperature, "resume": {"attempt": 1, "token_ids": [5]}}
            assert "it cannot be continued" in str(await (await stage.generate([1], **more)).last())
            error = await talk.last()
            assert isinstance(error, Error)
            assert (error.code, "what was drawn at random does not come again" in error.message) == (500, True)
        else:
            job = await other.got()
            assert (codec.unpack_tokens(job.prompt), job.sampling.regex) == ([1, 2, 3], "ab*")
            await other.emit(job, stage.ids("abb"), "stop")
            await finished(talk, stage.ids("abb"))


async def grammatical(stage: Stage, index: int) -> Gpu:
    """A decode actor whose engine has grammars."""
    gpu = await stage.gpu("decode", index)
    gpu.engine, gpu.grammars = "sglang", True
    await gpu.register()
    await eventually(lambda: stage.service.intake.grammars is True)
    return gpu
