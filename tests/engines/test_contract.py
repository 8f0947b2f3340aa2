"""What every engine must do, as processors see it: the simulated one and the real SGLang under the same tests."""

import asyncio
import math
import random
import re
import uuid
from typing import Any, TypeVar

import pytest
from tokenizers import Tokenizer

from messages import codec
from messages.bus import ServiceError
from messages.lifecycle import Control
from messages.work import Bootstrap, Decode, Job, Prefill, Sampling
from tests.engines.conftest import SLOTS
from tests.harness import ROOT, Cast, Desk

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

J = TypeVar("J", bound=Job)
WHOLE = "whole-decode-0"
PREFILL, DECODE, _ = SLOTS


def job(kind: type[J], desk: Desk, prompt: list[int], max_tokens: int = 16, **fields: Any) -> J:
    """Work of one kind: greedy, unless `fields` say otherwise; eos ignored, so that lengths are known."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    given: dict[str, Any] = {"request": str(uuid.uuid4()), "attempt": 0, "out": desk.name, "ttl": 30.0}
    return kind(**given | {"sampling": sampling, "prompt": codec.pack_tokens(prompt)} | fields)


async def whole(desk: Desk, prompt: list[int], max_tokens: int = 16, **fields: Any) -> list[int]:
    """Generate by one engine alone."""
    asked = job(Decode, desk, prompt, max_tokens, **fields)
    await desk.ask(WHOLE, asked)
    finish = await desk.finished(asked.request, seconds=30)
    assert finish.reason == "length", finish
    return desk.tokens[f"{asked.request}:0"]


async def apart(desk: Desk, engines: Cast, prompt: list[int], max_tokens: int = 16, **fields: Any) -> list[int]:
    """Generate by prefill and decode apart, both told at the same moment."""
    ready = await engines.until_ready(desk.bus, PREFILL)
    address = ready[PREFILL].bootstrap
    assert address is not None
    room = Bootstrap(host=address[0], port=address[1], room=random.randrange(1 << 62))
    fields = {"request": str(uuid.uuid4()), "bootstrap": room} | fields
    asked, ahead = job(Decode, desk, prompt, max_tokens, **fields), job(Prefill, desk, prompt, max_tokens, **fields)
    await asyncio.gather(desk.ask(DECODE, asked), desk.ask(PREFILL, ahead))
    finish = await desk.finished(asked.request, seconds=30)
    assert finish.reason == "length", finish
    await desk.finished_prefill(asked.request)
    return desk.tokens[f"{asked.request}:0"]


def prompts(count: int, longest: int = 300) -> list[list[int]]:
    """Prompts of lengths from 1, some of which share what they begin with."""
    chance = random.Random(7)
    shared = [chance.randrange(10, 500) for _ in range(longest)]
    made = []
    for number in range(count):
        length = 1 + number * longest // count
        begin = shared[: length // 2] if number % 3 == 0 else []
        made.append(begin + [chance.randrange(10, 500) for _ in range(length - len(begin))])
    return made


async def test_a_stream_is_as_long_as_asked_and_counts_what_it_took(desk: Desk) -> None:
    asked = job(Decode, desk, list(range(20, 60)), 24)
    accept = await desk.ask(WHOLE, asked)
    assert (accept.request, accept.by) == (asked.request, f"{WHOLE}-g1")
    finish = await desk.finished(asked.request)
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("length", 40, 24)
    assert len(desk.tokens[f"{asked.request}:0"]) == 24


async def test_greedy_tokens_are_the_same_again_alone_and_among_others(desk: Desk) -> None:
    some = prompts(8, 100)
    alone = [await whole(desk, prompt) for prompt in some]
    together = await asyncio.gather(*(whole(desk, prompt) for prompt in some))
    assert alone == list(together)
    assert len({tuple(tokens) for tokens in alone}) > 4, "different prompts are answered differently"


async def test_prefill_and_decode_apart_make_what_one_engine_makes(desk: Desk, engines: Cast) -> None:
    some = prompts(10)
    expected = [await whole(desk, prompt) for prompt in some]
    assert [await apart(desk, engines, prompt) for prompt in some] == expected
    assert list(await asyncio.gather(*(apart(desk, engines, prompt) for prompt in some))) == expected


async def test_a_stream_goes_on_from_prompt_and_tokens_so_far(desk: Desk, engines: Cast) -> None:
    prompt = list(range(30, 80))
    tokens = await whole(desk, prompt, 24)
    assert await whole(desk, prompt + tokens[:9], 15) == tokens[9:]
    assert await apart(desk, engines, prompt + tokens[:17], 7) == tokens[17:]


async def test_the_prefix_cache_is_counted(desk: Desk) -> None:
    prompt = [random.Random(11).randrange(10, 500) for _ in range(64)]
    await whole(desk, prompt)
    again = job(Decode, desk, [*prompt, 33], 4)
    await desk.ask(WHOLE, again)
    assert (await desk.finished(again.request)).cached_tokens >= 48


async def test_a_stop_token_ends_the_stream_and_is_named(desk: Desk) -> None:
    prompt = list(range(40, 70))
    tokens = await whole(desk, prompt, 12)
    stop = tokens[5]
    sampling = Sampling(max_tokens=12, temperature=0, stop_token_ids=[stop])
    asked = job(Decode, desk, prompt, sampling=sampling)
    await desk.ask(WHOLE, asked)
    finish = await desk.finished(asked.request)
    made = desk.tokens[f"{asked.request}:0"]
    assert (finish.reason, finish.matched) == ("stop", stop)
    assert made == tokens[: tokens.index(stop) + 1]


async def test_an_abort_ends_a_stream_at_once_and_frees_its_place(desk: Desk) -> None:
    asked = job(Decode, desk, list(range(20, 40)), 900)
    await desk.ask(WHOLE, asked)
    await desk.some(asked.request, 3)
    abort = codec.to_json(Control(request=asked.request, attempt=0))
    await desk.bus.request(desk.subjects.control(WHOLE, "abort"), abort, timeout=2)
    finish = await desk.finished(asked.request, seconds=2)
    assert (finish.reason, finish.code) == ("abort", 499)
    assert len(desk.tokens[f"{asked.request}:0"]) < 900
    assert len(await whole(desk, [20, 21])) == 16


async def test_aborted_in_the_same_breath_it_still_has_one_finish(desk: Desk) -> None:
    for number in range(5):
        asked = job(Decode, desk, list(range(20, 40 + number)), 900)
        subject = desk.subjects.work("whole", "decode", WHOLE)
        abort = codec.to_json(Control(request=asked.request, attempt=0))
        await asyncio.gather(
            desk.bus.request(subject, codec.to_msgpack(asked), timeout=2),
            desk.bus.request(desk.subjects.control(WHOLE, "abort"), abort, timeout=2),
        )
        if asked.request not in {item.request for frame in desk.frames for item in frame.items if item.finish}:
            await desk.bus.request(desk.subjects.control(WHOLE, "abort"), abort, timeout=2)
        assert (await desk.finished(asked.request, seconds=5)).reason == "abort"


async def test_prefill_that_nobody_meets_is_aborted_in_time(desk: Desk, engines: Cast) -> None:
    ready = await engines.until_ready(desk.bus, PREFILL)
    address = ready[PREFILL].bootstrap
    assert address is not None
    room = Bootstrap(host=address[0], port=address[1], room=random.randrange(1 << 62))
    lonely = job(Decode, desk, list(range(20, 50)), bootstrap=room)
    await desk.ask(DECODE, lonely)
    abort = codec.to_json(Control(request=lonely.request, attempt=0))
    await desk.bus.request(desk.subjects.control(DECODE, "abort"), abort, timeout=2)
    assert (await desk.finished(lonely.request, seconds=3)).reason == "abort"
    assert len(await apart(desk, engines, list(range(20, 50)))) == 16


async def test_the_deadline_ends_a_stream(desk: Desk) -> None:
    asked = job(Decode, desk, list(range(20, 40)), 900, ttl=0.3)
    await desk.ask(WHOLE, asked)
    assert (await desk.finished(asked.request, seconds=5)).reason == "abort"


@pytest.mark.parametrize("prompt", [[5, 1 << 20], []], ids=["outside the vocabulary", "empty"])
async def test_what_would_harm_the_engine_is_refused_and_others_go_on(desk: Desk, prompt: list[int]) -> None:
    going = asyncio.ensure_future(whole(desk, list(range(50, 90)), 60))
    with pytest.raises(ServiceError) as refused:
        await desk.ask(WHOLE, job(Decode, desk, prompt))
    assert refused.value.code == 400
    assert len(await going) == 60


def ranking(ranks: int, max_tokens: int = 12, **fields: Any) -> dict[str, Any]:
    """Greedy work that asks for log-probabilities, and the name under which they come."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True, logprobs=ranks, **fields)
    return {"sampling": sampling, "request": str(uuid.uuid4())}


def alike(one: list[codec.Ranked], other: list[codec.Ranked]) -> bool:
    """Whether log-probabilities are the same, but for rounding: batches of other shapes sum in another order."""
    return len(one) == len(other) and all(
        first[0] == pytest.approx(second[0], abs=2e-3)
        and [value for _, value in first[1]] == pytest.approx([value for _, value in second[1]], abs=2e-3)
        for first, second in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("ranks", [0, 3, 20])
async def test_log_probabilities_come_with_the_tokens(desk: Desk, ranks: int) -> None:
    asked = ranking(ranks)
    tokens = await whole(desk, list(range(30, 70)), **asked)
    found = desk.logprobs[f"{asked['request']}:0"]
    assert len(found) == len(tokens) == 12
    for token, (logprob, likeliest) in zip(tokens, found, strict=True):
        values = [value for _, value in likeliest]
        assert len(likeliest) == ranks == len({at for at, _ in likeliest})
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001
        assert not likeliest or likeliest[0] == (token, logprob), "greedy takes the likeliest"
    assert await whole(desk, list(range(30, 70)), 12) == tokens, "asking changes no token"


async def test_log_probabilities_are_the_same_apart_and_going_on(desk: Desk, engines: Cast) -> None:
    prompt, once, again, later = list(range(30, 70)), ranking(2), ranking(2), ranking(2, 5)
    tokens = await whole(desk, prompt, **once)
    expected = desk.logprobs[f"{once['request']}:0"]
    assert await apart(desk, engines, prompt, **again) == tokens
    assert alike(desk.logprobs[f"{again['request']}:0"], expected), "the first comes from prefill"
    assert await apart(desk, engines, prompt + tokens[:7], **later) == tokens[7:]
    assert alike(desk.logprobs[f"{later['request']}:0"], expected[7:])


async def test_those_who_do_not_ask_get_no_log_probabilities(desk: Desk) -> None:
    await whole(desk, list(range(30, 70)))
    assert all(item.logprobs is None for frame in desk.frames for item in frame.items)


async def test_biases_force_and_forbid_tokens(desk: Desk, engines: Cast) -> None:
    prompt = list(range(30, 70))
    plain = await whole(desk, prompt, 6)
    forced = Sampling(max_tokens=6, temperature=0, ignore_eos=True, logit_bias={77: 100.0})
    banned = Sampling(max_tokens=6, temperature=0, ignore_eos=True, logit_bias={plain[0]: -100.0})
    assert await whole(desk, prompt, sampling=forced) == [77] * 6
    assert await apart(desk, engines, prompt, sampling=forced) == [77] * 6, "the first token is prefill's"
    assert plain[0] not in await whole(desk, prompt, sampling=banned)


async def test_no_stop_token_comes_before_the_least_number_of_tokens(desk: Desk, engines: Cast) -> None:
    prompt = list(range(40, 70))
    stop = (await whole(desk, prompt, 12))[0]
    at_once = job(Decode, desk, prompt, sampling=Sampling(max_tokens=12, temperature=0, stop_token_ids=[stop]))
    await desk.ask(WHOLE, at_once)
    assert (await desk.finished(at_once.request)).completion_tokens == 1
    sampling = Sampling(max_tokens=4, temperature=0, stop_token_ids=[stop], min_tokens=4)
    assert stop not in (await whole(desk, prompt, sampling=sampling))
    assert stop not in (await apart(desk, engines, prompt, sampling=sampling)), "the first token is prefill's"


async def test_a_bias_outside_the_vocabulary_is_refused(desk: Desk) -> None:
    with pytest.raises(ServiceError, match="logit_bias: token id 70000 is outside the vocabulary of 512"):
        await desk.ask(WHOLE, job(Decode, desk, [5], sampling=Sampling(max_tokens=1, logit_bias={70_000: 1.0})))


async def test_an_engine_holds_to_grammars_or_says_that_it_has_none(desk: Desk, engines: Cast) -> None:
    registered = (await engines.until_ready(desk.bus, WHOLE))[WHOLE]
    assert registered.grammars == (registered.engine == "sglang")
    asked = job(
        Decode, desk, [5, 6], sampling=Sampling(max_tokens=9, temperature=0, regex="[0-9]{3}", stop_token_ids=[1])
    )
    if not registered.grammars:
        with pytest.raises(ServiceError, match="regex: this engine has no grammars"):
            await desk.ask(WHOLE, asked)
        return
    await desk.ask(WHOLE, asked)
    finish = await desk.finished(asked.request)
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "tiny" / "tokenizer.json"))
    assert finish.reason == "stop"
    assert re.fullmatch("[0-9]{3}", tokenizer.decode(desk.tokens[f"{asked.request}:0"], skip_special_tokens=True))
    broken = job(Decode, desk, [5, 6], sampling=Sampling(max_tokens=9, regex=r"\p{L}"))
    await desk.ask(WHOLE, broken)
    finish = await desk.finished(broken.request)
    assert (finish.reason, finish.code, "Failed to compile regex grammar" in finish.message) == ("error", 400, True)
    assert len(await whole(desk, [20, 21])) == 16, "others go on"


@pytest.mark.parametrize("length", [1, 40])
async def test_log_probabilities_of_the_prompt_come_from_whoever_computes_it(
    desk: Desk, engines: Cast, length: int
) -> None:
    prompt, once, again = (
        list(range(30, 30 + length)),
        ranking(2, prompt_logprobs=True),
        ranking(2, prompt_logprobs=True),
    )
    tokens = await whole(desk, prompt)
    assert (await whole(desk, prompt, **once))[:12] == tokens[:12]
    found = desk.logprobs[f"{once['request']}:0"]
    of_prompt = desk.prompt_logprobs[f"{once['request']}:0"]
    assert (len(found), len(of_prompt)) == (12, length - 1)
    assert all(len(likeliest) == 2 and likeliest[0][1] <= 0 for _, likeliest in of_prompt)
    await apart(desk, engines, prompt, **again)
    assert alike(desk.prompt_logprobs[f"{again['request']}:0"], of_prompt)
    assert alike(desk.logprobs[f"{again['request']}:0"], found)
