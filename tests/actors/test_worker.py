"""GPU actors as processors meet them: real processes, the simulated engine, a real bus."""

import asyncio
import re
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from messages import codec
from messages.bus import Bus, NobodyThereError, ServiceError, SilentError
from messages.lifecycle import Answer, Control, Exit, State
from messages.work import Bootstrap, Decode, Job, Prefill, Sampling
from tests.conftest import NatsServer, eventually
from tests.harness import ROOT, Cast, Desk

pytestmark = pytest.mark.nats


def configuration(prefill: bool, drills: str, **simulated: Any) -> dict[str, Any]:
    cast: dict[str, Any] = {"processor": {}, "decode": {"count": 2, "capacity": 8, "drain_deadline": 5.0}}
    if prefill:
        cast["prefill"] = {"count": 1, "capacity": 8}
    model = {"name": "demo", "engine": "simulated", "tokenizer": str(ROOT / "models" / "tiny"), "cast": cast}
    return {"models": [model | {"simulated": {"ttft": 0.0, "itl": 0.0} | simulated}], "drills": drills}


@pytest.fixture
async def desk(bus: Bus) -> AsyncIterator[Desk]:
    from messages.subjects import Subjects

    made = Desk(bus, Subjects())
    await made.open()
    yield made


def decode(desk: Desk, prompt: list[int], max_tokens: int = 32, **fields: Any) -> Decode:
    return Decode(**_common(desk, prompt, max_tokens, fields))


def prefill(desk: Desk, prompt: list[int], max_tokens: int = 32, **fields: Any) -> Prefill:
    return Prefill(**_common(desk, prompt, max_tokens, fields))


def _common(desk: Desk, prompt: list[int], max_tokens: int, fields: dict[str, Any]) -> dict[str, Any]:
    given = {"request": str(uuid.uuid4()), "attempt": 0, "out": desk.name, "ttl": 30.0}
    sampling = Sampling(max_tokens=max_tokens, temperature=0)
    return given | {"prompt": codec.pack_tokens(prompt), "sampling": sampling} | fields


async def asked_again(desk: Desk, slot: str, job: Job, code: int) -> str:
    with pytest.raises(ServiceError) as refused:
        await desk.ask(slot, job)
    assert refused.value.code == code
    return refused.value.message


@pytest.fixture
def cast(tmp_path: Path, nats_server: NatsServer, request: pytest.FixtureRequest) -> Any:
    arguments = dict(getattr(request, "param", {}))
    prefill, drills = arguments.pop("prefill", False), arguments.pop("drills", "allowed")
    made = Cast(tmp_path, nats_server.url, configuration(prefill, drills, **arguments))
    yield made
    made.stop()


async def test_tokens_follow_from_the_prompt_and_go_on_where_another_actor_stopped(
    cast: Cast, bus: Bus, desk: Desk
) -> None:
    cast.start("demo-decode-0")
    cast.start("demo-decode-1")
    await cast.until_ready(bus, "demo-decode-0", "demo-decode-1")
    whole = decode(desk, [7, 8, 9], 64)
    accept = await desk.ask("demo-decode-0", whole)
    assert accept.by == "demo-decode-0-g1"
    finish = await desk.finished(whole.request)
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("length", 3, 64)
    text = desk.tokens[f"{whole.request}:0"]
    assert len(text) == 64
    rest = decode(desk, [7, 8, 9, *text[:20]], 44)
    await desk.ask("demo-decode-1", rest)
    await desk.finished(rest.request)
    assert desk.tokens[f"{rest.request}:0"] == text[20:]


@pytest.mark.parametrize("cast", [{"prefill": True, "ttft": 0.01}], indirect=True)
async def test_prefill_and_decode_meet_in_a_room_and_make_what_one_engine_makes(
    cast: Cast, bus: Bus, desk: Desk
) -> None:
    for slot in ("demo-prefill-0", "demo-decode-0"):
        cast.start(slot)
    ready = await cast.until_ready(bus, "demo-prefill-0", "demo-decode-0")
    address = ready["demo-prefill-0"].bootstrap
    assert address is not None
    room = Bootstrap(host=address[0], port=address[1], room=77)
    apart = decode(desk, list(range(40)), 16, bootstrap=room)
    await desk.ask("demo-decode-0", apart)
    ahead = prefill(desk, list(range(40)), 16, request=apart.request, bootstrap=room)
    await desk.ask("demo-prefill-0", ahead)
    assert (await desk.finished(apart.request)).reason == "length"
    assert len(desk.tokens[f"{apart.request}:0"]) == 16
    await eventually(lambda: f"{apart.request}:0" in desk.prefilled)
    assert desk.prefilled[f"{apart.request}:0"].prompt_tokens == 40
    alone = decode(desk, list(range(40)), 16, bootstrap=Bootstrap(host="2.2.2.2", port=1, room=78))
    await desk.ask("demo-decode-0", alone)
    await desk.finished(alone.request)
    assert desk.tokens[f"{alone.request}:0"] == desk.tokens[f"{apart.request}:0"]


@pytest.mark.parametrize("cast", [{"prefill": True, "ttft": 30.0}], indirect=True)
async def test_prefills_death_is_felt_by_decode_at_once(cast: Cast, bus: Bus, desk: Desk) -> None:
    dying = cast.start("demo-prefill-0")
    cast.start("demo-decode-0")
    ready = await cast.until_ready(bus, "demo-prefill-0", "demo-decode-0")
    address = ready["demo-prefill-0"].bootstrap
    assert address is not None
    room = Bootstrap(host=address[0], port=address[1], room=5)
    waiting = decode(desk, [1, 2, 3], bootstrap=room)
    await desk.ask("demo-decode-0", waiting)
    await desk.ask("demo-prefill-0", prefill(desk, [1, 2, 3], bootstrap=room))
    dying.kill()
    finish = await desk.finished(waiting.request, seconds=2)
    assert (finish.reason, finish.code) == ("error", 503)
    assert re.search("is gone|cannot be reached", finish.message), "before or after decode had reached it"


async def test_what_cannot_be_taken_is_refused_with_its_code(cast: Cast, bus: Bus, desk: Desk) -> None:
    cast.start("demo-decode-0", 3)
    await cast.until_ready(bus, "demo-decode-0", generation=3)
    job = decode(desk, [1, 2, 3])
    assert "not #2" in await asked_again(desk, "demo-decode-0", decode(desk, [1], generation=2), 409)
    assert "does decode" in await asked_again(desk, "demo-decode-0", prefill(desk, [1]), 400)
    assert "deadline" in await asked_again(desk, "demo-decode-0", decode(desk, [1], ttl=0.0), 408)
    with pytest.raises(ServiceError) as refused:
        await bus.request(desk.subjects.work("demo", "decode", "demo-decode-0"), b"\x00nonsense", timeout=2)
    assert refused.value.code == 400
    torn = msgspec.structs.replace(decode(desk, [1]), prompt=b"12345")
    assert "5 bytes" in await asked_again(desk, "demo-decode-0", torn, 400)
    await desk.ask("demo-decode-0", job)
    assert (await desk.finished(job.request)).reason == "length"


@pytest.mark.parametrize("cast", [{"itl": 5.0}], indirect=True)
async def test_capacity_asking_twice_and_abort(cast: Cast, bus: Bus, desk: Desk) -> None:
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    jobs = [decode(desk, [1, number]) for number in range(8)]
    for job in jobs:
        assert (await desk.ask("demo-decode-0", job)) == (await desk.ask("demo-decode-0", job))
    assert "full" in await asked_again(desk, "demo-decode-0", decode(desk, [2]), 429)
    abort = codec.to_json(Control(request=jobs[0].request, attempt=0))
    answer = await bus.request(desk.subjects.control("demo-decode-0", "abort"), abort, timeout=2)
    assert codec.from_json(answer.data, Answer).message == "1 aborted"
    finish = await desk.finished(jobs[0].request, seconds=1)
    assert (finish.reason, finish.code) == ("abort", 499)
    await desk.ask("demo-decode-0", decode(desk, [3]))


async def test_an_abort_that_is_read_before_the_work_it_means_holds(cast: Cast, bus: Bus, desk: Desk) -> None:
    """Else an actor whose loop was blocked would wait, with nobody to meet it, until the request's deadline."""
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    job = decode(desk, [4, 5], 20, attempt=2)
    abort = codec.to_json(Control(request=job.request, attempt=2, out=desk.name))
    answer = await bus.request(desk.subjects.control("demo-decode-0", "abort"), abort, timeout=5)
    assert codec.from_json(answer.data, Answer).message == "0 aborted"
    assert "has been aborted" in await asked_again(desk, "demo-decode-0", job, 409)
    await desk.ask("demo-decode-0", msgspec.structs.replace(job, attempt=3))
    assert (await desk.finished(job.request, 3)).reason == "length"


@pytest.mark.parametrize("cast", [{"itl": 5.0}], indirect=True)
async def test_work_that_was_accepted_and_aborted_is_refused_when_it_is_asked_again(
    cast: Cast, bus: Bus, desk: Desk
) -> None:
    """A processor that was cut off asks again; of the abort's answer it knows, so nobody would abort that once more."""
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    job = decode(desk, [4, 5], 20)
    await desk.ask("demo-decode-0", job)
    abort = codec.to_json(Control(request=job.request, attempt=0, out=desk.name))
    answer = await bus.request(desk.subjects.control("demo-decode-0", "abort"), abort, timeout=5)
    assert codec.from_json(answer.data, Answer).message == "1 aborted"
    assert "has been aborted" in await asked_again(desk, "demo-decode-0", job, 409), "at once"
    assert (await desk.finished(job.request)).reason == "abort"
    assert "has been aborted" in await asked_again(desk, "demo-decode-0", job, 409), "and when it is over"
    await desk.ask("demo-decode-0", msgspec.structs.replace(job, ttl=29.0))


@pytest.mark.parametrize("cast", [{"prefill": True}], indirect=True)
async def test_work_that_is_done_is_not_done_again_when_it_is_asked_again(cast: Cast, bus: Bus, desk: Desk) -> None:
    """Else it would wait for prefill, which has gone on, until the request's deadline; and a drain would with it."""
    draining = cast.start("demo-decode-0")
    cast.start("demo-prefill-0")
    ready = await cast.until_ready(bus, "demo-prefill-0", "demo-decode-0")
    address = ready["demo-prefill-0"].bootstrap
    assert address is not None
    room = Bootstrap(host=address[0], port=address[1], room=9)
    job = decode(desk, [1, 2, 3], 8, bootstrap=room)
    ahead = prefill(desk, [1, 2, 3], 8, request=job.request, bootstrap=room)
    accept = await desk.ask("demo-decode-0", job)
    await desk.ask("demo-prefill-0", ahead)
    assert (await desk.finished(job.request)).reason == "length"
    assert await desk.ask("demo-decode-0", job) == accept
    draining.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(draining.wait, 30) == 0, "drained, not given up at its deadline of 5 s"
    assert len(desk.finishes[f"{job.request}:0"]) == 1


@pytest.mark.parametrize("cast", [{"drills": "refused"}], indirect=True)
async def test_faults_are_refused_where_drills_are_not_allowed(cast: Cast, bus: Bus, desk: Desk) -> None:
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    crash = codec.to_json(Control(fault="crash"))
    with pytest.raises(ServiceError, match="drills: allowed") as refused:
        await bus.request(desk.subjects.control("demo-decode-0", "fault"), crash, timeout=5)
    assert refused.value.code == 403
    await desk.ask("demo-decode-0", job := decode(desk, [4], 4))
    assert (await desk.finished(job.request)).reason == "length"


@pytest.mark.parametrize("cast", [{"itl": 5.0}], indirect=True)
async def test_an_abort_that_is_read_in_one_breath_with_the_work_it_means_holds(
    cast: Cast, bus: Bus, desk: Desk
) -> None:
    """A loop that was blocked finds both, and carries out the abort before the engine has heard of the work."""
    slot = "demo-decode-0"
    cast.start(slot)
    await cast.until_ready(bus, slot)
    spin = codec.to_json(Control(fault="spin", seconds=1.5))
    spinning = asyncio.create_task(bus.request(desk.subjects.control(slot, "fault"), spin, timeout=30))
    with pytest.raises(SilentError):
        while True:
            await bus.request(desk.subjects.control(slot, "ping"), codec.to_json(Control()), timeout=0.3)
    # With this its controls are read first, and then the work, before any of them is carried out.
    await bus.publish(desk.subjects.control(slot, "ping"), codec.to_json(Control()))
    jobs = [decode(desk, [4, number]) for number in range(7)]
    subject = desk.subjects.work("demo", "decode", slot)
    working = [asyncio.create_task(bus.request(subject, codec.to_msgpack(job), timeout=30)) for job in jobs]
    await asyncio.sleep(0)
    for job in jobs:
        abort = codec.to_json(Control(request=job.request, attempt=0))
        await bus.publish(desk.subjects.control(slot, "abort"), abort)
    await spinning
    for job, answer in zip(jobs, await asyncio.gather(*working, return_exceptions=True), strict=True):
        if isinstance(answer, BaseException):
            assert isinstance(answer, ServiceError)
            assert "has been aborted" in answer.message
        else:
            assert (await desk.finished(job.request)).reason == "abort"


@pytest.mark.parametrize("cast", [{"itl": 0.02}], indirect=True)
async def test_two_processors_with_one_request_each_have_their_own(cast: Cast, bus: Bus, desk: Desk) -> None:
    """A client that has not heard of the first may have asked a second one; the one that lets go stops its own."""
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    other = Desk(bus, desk.subjects, "test-processor-1-g1")
    await other.open()
    job = decode(desk, [4, 5], 20)
    for one in (desk, other):
        await one.ask("demo-decode-0", msgspec.structs.replace(job, out=one.name))
    abort = codec.to_json(Control(request=job.request, attempt=job.attempt, out=other.name))
    answer = await bus.request(desk.subjects.control("demo-decode-0", "abort"), abort, timeout=2)
    assert codec.from_json(answer.data, Answer).message == "1 aborted"
    assert (await other.finished(job.request)).reason == "abort"
    assert (await desk.finished(job.request)).reason == "length"
    assert len(desk.tokens[f"{job.request}:0"]) == 20


@pytest.mark.parametrize("cast", [{"itl": 0.02}], indirect=True)
async def test_a_drain_finishes_what_is_there_takes_nothing_new_and_says_goodbye(
    cast: Cast, bus: Bus, desk: Desk
) -> None:
    process = cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    job = decode(desk, [4, 5], 20)
    await desk.ask("demo-decode-0", job)
    await desk.some(job.request, 1)
    process.send_signal(signal.SIGTERM)
    assert (await desk.finished(job.request)).reason == "length"
    assert len(desk.tokens[f"{job.request}:0"]) == 20
    await eventually(lambda: process.poll() is not None)
    assert process.returncode == Exit.OK
    assert cast.exit_note("demo-decode-0").reason == "drained"
    registry = await bus.bucket(desk.subjects.registry_bucket)
    assert await registry.get("decode.demo-decode-0") is None
    with pytest.raises(NobodyThereError):
        await desk.ask("demo-decode-0", decode(desk, [1]))


@pytest.mark.parametrize("cast", [{"itl": 60.0}], indirect=True)
async def test_a_second_sigterm_aborts_what_is_left_each_with_its_finish(cast: Cast, bus: Bus, desk: Desk) -> None:
    process = cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    job = decode(desk, [4, 5], 20)
    await desk.ask("demo-decode-0", job)
    process.send_signal(signal.SIGTERM)
    registry = await bus.bucket(desk.subjects.registry_bucket)

    async def state() -> str:
        entry = await registry.get("decode.demo-decode-0")
        return "" if entry is None else entry[0].decode()

    while f'"state":"{State.DRAINING}"' not in await state():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    finish = await desk.finished(job.request)
    assert (finish.reason, finish.code, finish.message) == ("error", 503, "demo-decode-0#1 ends")
    await eventually(lambda: process.poll() is not None)
    assert process.returncode == Exit.ABORTED


@pytest.mark.parametrize("cast", [{"itl": 0.01}], indirect=True)
async def test_frames_lost_while_nats_restarts_come_again(
    cast: Cast, bus: Bus, desk: Desk, nats_server: NatsServer
) -> None:
    cast.start("demo-decode-0")
    await cast.until_ready(bus, "demo-decode-0")
    back = False

    def on_back() -> None:
        nonlocal back
        back = True

    bus.on_back(on_back)
    job = decode(desk, [4, 5], 150)
    await desk.ask("demo-decode-0", job)
    await desk.some(job.request, 5)
    nats_server.stop()
    nats_server.start()
    await eventually(lambda: back)
    await desk.hello("demo-decode-0-g1", desk.last["demo-decode-0-g1"])
    assert (await desk.finished(job.request, seconds=10)).reason == "length"
    assert len(desk.tokens[f"{job.request}:0"]) == 150


async def test_a_newer_generation_ends_an_older_life(cast: Cast, bus: Bus, desk: Desk) -> None:
    old = cast.start("demo-decode-0", 1)
    await cast.until_ready(bus, "demo-decode-0")
    registry = await bus.bucket(desk.subjects.registry_bucket)
    await registry.put("gen.demo-decode-0", b"2")
    await eventually(lambda: old.poll() is not None)
    assert old.returncode == Exit.REGISTER
    late = cast.start("demo-decode-0", 1)
    await eventually(lambda: late.poll() is not None, 10)
    assert late.returncode == Exit.REGISTER
    assert "generation 2" in cast.exit_note("demo-decode-0").reason


async def test_a_context_that_nats_cannot_carry_is_refused_with_both_numbers(
    cast: Cast, bus: Bus, tmp_path: Path
) -> None:
    cast.config.write_text(cast.config.read_text().replace("cast:", "context_length: 1000000\n  cast:", 1))
    process = cast.start("demo-decode-0")
    await eventually(lambda: process.poll() is not None, 10)
    assert process.returncode == Exit.BUS
    said = cast.exit_note("demo-decode-0").reason
    assert str(bus.max_payload) in said and "8000000" in said


async def test_a_bad_slot_is_a_configuration_error_that_names_the_slots_there_are(cast: Cast, bus: Bus) -> None:
    process = cast.start("demo-decode-7")
    await eventually(lambda: process.poll() is not None, 10)
    assert process.returncode == Exit.CONFIG
    assert "demo-decode-1" in cast.log("demo-decode-7")
