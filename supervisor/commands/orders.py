"""`troupe drain` and `troupe restart`: what a person asks of one slot."""

import asyncio
import contextlib
from argparse import Namespace

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus, NobodyThereError, ServiceError, SilentError
from messages.ids import parse_slot
from messages.lifecycle import Answer, Event
from messages.subjects import Subjects
from messages.supervise import Said, Status
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import ask, connected, folder_of, record_of, say
from supervisor.commands.roll import roll
from supervisor.state import ClusterRecord, Folder

DRAIN_ENDS = ("stopped", "gave_up")
RESTART_ENDS = ("ready", "standby", "gave_up")


def drain(options: Namespace) -> Code:
    """Let a slot finish what it has and stop; it stays stopped until `troupe restart`."""
    return asyncio.run(_order(folder_of(options), "drain", options.SLOT, options.wait))


def restart(options: Namespace) -> Code:
    """Let a slot finish what it has and start its next generation; also brings back one that failed or was drained.

    With a model or a role instead of a slot: all of these, one after the other (`commands.roll`).
    """
    whole = options.model is not None or options.role is not None or options.stop
    if whole and options.SLOT is not None:
        raise CommandError(Code.USAGE, f"either {options.SLOT}, or --model and --role: which is meant?")
    if not whole and options.SLOT is None:
        raise CommandError(Code.USAGE, "what is to be restarted? a slot (`troupe status` lists them), or --model NAME")
    if whole:
        return roll(options)
    return asyncio.run(_order(folder_of(options), "restart", options.SLOT, options.wait or 0.0))


async def _order(folder: Folder, order: str, slot: str, wait: float) -> Code:
    record = record_of(folder)
    _check_name(folder, record, slot)
    async with connected(record) as bus:
        events: asyncio.Queue[Event] = asyncio.Queue()
        if wait:
            await _listen(bus, record, slot, events)
        said = await ask(bus, record, order, Said, slot)
        if said is None:
            return await _without_supervisor(bus, folder, record, order, slot)
        say(said.message)
        if not said.done:
            return Code.REFUSED
        return await _wait(events, slot, DRAIN_ENDS if order == "drain" else RESTART_ENDS, wait) if wait else Code.OK


def _check_name(folder: Folder, record: ClusterRecord, slot: str) -> None:
    try:
        parse_slot(slot)
    except ValueError as error:
        raise CommandError(Code.USAGE, str(error)) from None
    known = [*folder.slots(), *record.external]
    if known and slot not in known:
        raise CommandError(Code.USAGE, f"there is no slot {slot!r} here; there are {', '.join(known)}")


async def _listen(bus: Bus, record: ClusterRecord, slot: str, events: "asyncio.Queue[Event]") -> None:
    async def heard(msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            events.put_nowait(codec.from_json(msg.data, Event))

    await bus.subscribe(Subjects(record.cluster).event("restart", slot), heard)
    await bus.flush()


async def _wait(events: "asyncio.Queue[Event]", slot: str, ends: tuple[str, ...], seconds: float) -> Code:
    try:
        async with asyncio.timeout(seconds):
            while (event := await events.get()).what not in ends:
                pass
    except TimeoutError:
        say(f"{slot} did not get there within {seconds:g} s")
        return Code.NOT_READY
    say(f"{slot}#{event.generation} {event.what.replace('_', ' ')}{': ' + event.reason if event.reason else ''}")
    return Code.NOT_READY if event.what == "gave_up" else Code.OK


async def _without_supervisor(bus: Bus, folder: Folder, record: ClusterRecord, order: str, slot: str) -> Code:
    """Nobody has the slot: tell the actor itself to drain; a restart needs somebody who starts."""
    if await ask(bus, record, "status", Status) is not None:
        raise CommandError(Code.USAGE, f"there is no slot {slot!r} in this cluster; `troupe status` lists them")
    external = slot in record.external
    if order == "restart" and not external:
        raise CommandError(
            Code.NOT_RUNNING, f"no supervisor lives in {folder.root}, so nobody would start it; call `troupe up` first"
        )
    try:
        answer = await bus.request(Subjects(record.cluster).control(slot, "drain"), timeout=3.0)
        found = codec.from_json(answer.data, Answer)
    except (NobodyThereError, SilentError):
        raise CommandError(Code.FAILED, f"{slot} does not answer, and no supervisor lives") from None
    except (ServiceError, msgspec.DecodeError) as error:
        raise CommandError(Code.FAILED, f"{slot}: {error}") from None
    then = (
        "its manager says whether it comes back" if external else "no supervisor lives, so nothing would start it again"
    )
    say(f"{slot}#{found.generation} drains; {then}")
    return Code.OK
