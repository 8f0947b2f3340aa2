"""`troupe restart --model M`: a rolling restart, which the supervisor carries on; this command only asks and watches.

So Ctrl-C, or the end of this process, changes nothing: the slot at hand comes back, and the others follow. `--stop`
ends it after the slot at hand.
"""

import asyncio
import contextlib
import time
from argparse import Namespace
from typing import Final

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.ids import ROLES, parse_slot, short
from messages.lifecycle import Event
from messages.subjects import Subjects
from messages.supervise import Order, Rolling, Said, Status
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import ask, connected, folder_of, record_of, say
from supervisor.state import ClusterRecord, Folder

LOOK_SECONDS: Final = 10.0
"""After so long without news the supervisor is asked how far it is: it may have died."""


def roll(options: Namespace) -> Code:
    """Restart a model's slots one after the other, or those of one role, and tell how it goes."""
    folder = folder_of(options)
    record = record_of(folder)
    model = _model(record, options.model)
    _check_role(folder, record, model, options.role)
    order = Order(model=model, role=options.role or "", halt=options.stop)
    return asyncio.run(_stop(folder, record, order) if options.stop else _roll(folder, record, order, options.wait))


def _model(record: ClusterRecord, asked: str | None) -> str:
    """Find the model meant: the one named by its name or alias, or the only one."""
    listed = ", ".join(name if name == alias else f"{name} ({alias})" for alias, name in record.models.items())
    if asked is None and len(record.models) != 1:
        raise CommandError(Code.USAGE, f"which model? say --model; there is {listed}")
    for alias, name in record.models.items():
        if asked in (None, alias, name):
            return name
    raise CommandError(Code.USAGE, f"there is no model {asked!r} here; there is {listed}")


def _check_role(folder: Folder, record: ClusterRecord, model: str, role: str | None) -> None:
    if role is None:
        return
    named = [parse_slot(slot) for slot in [*folder.slots(), *record.external]]
    has = [known for known in ROLES if known in {slot.role for slot in named if record.models.get(slot.alias) == model}]
    if role not in has:
        raise CommandError(Code.USAGE, f"{model} has no {role!r}; it has {', '.join(has)}")


async def _stop(folder: Folder, record: ClusterRecord, order: Order) -> Code:
    async with connected(record) as bus:
        said = await _ask(bus, folder, record, order)
        say(said.message)
        return Code.OK if said.done else Code.REFUSED


async def _roll(folder: Folder, record: ClusterRecord, order: Order, wait: float | None) -> Code:
    async with connected(record) as bus:
        events = await _listen(bus, record)
        said = await _ask(bus, folder, record, order)
        say(said.message)
        if not said.done:
            return Code.REFUSED
        if wait == 0:
            return Code.OK
        try:
            return await _watch(bus, record, events, said.roll, wait)
        except asyncio.CancelledError:
            say("\nit goes on without this command; `troupe status` tells how far it is, `--stop` ends it")
            raise


async def _ask(bus: Bus, folder: Folder, record: ClusterRecord, order: Order) -> Said:
    said = await ask(bus, record, "restart", Said, asked=order)
    if said is None:
        raise CommandError(
            Code.NOT_RUNNING,
            f"no supervisor lives in {folder.root}, so nobody would start them; call `troupe up` first",
        )
    return said


async def _listen(bus: Bus, record: ClusterRecord) -> "asyncio.Queue[Event]":
    events: asyncio.Queue[Event] = asyncio.Queue()

    async def heard(msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            event = codec.from_json(msg.data, Event)
            if "roll" in event.detail:
                events.put_nowait(event)

    await bus.subscribe(Subjects(record.cluster).events_of("restart"), heard)
    await bus.flush()
    return events


async def _watch(
    bus: Bus, record: ClusterRecord, events: "asyncio.Queue[Event]", roll: str, wait: float | None
) -> Code:
    """Tell what happens until it is over, or the patience is."""
    until = None if wait is None else time.monotonic() + wait
    while True:
        left = LOOK_SECONDS if until is None else min(LOOK_SECONDS, until - time.monotonic())
        try:
            async with asyncio.timeout(left):
                event = await events.get()
        except TimeoutError:
            if until is not None and time.monotonic() >= until:
                say(f"not over within {wait:g} s; it goes on, `troupe status` tells how far it is")
                return Code.NOT_READY
            if (code := _over(await _look(bus, record, roll))) is not None:
                return code
            continue
        if event.detail["roll"] == roll:
            code = _tell(event)
            if code is not None:
                return code


def _tell(event: Event) -> Code | None:
    """Write a line of progress; return the exit code where it was the last."""
    done, total, who = event.detail["done"], event.detail["total"], short(event.of, event.generation)
    match event.what:
        case "rolls":
            say(f"{done + 1}/{total} {who} drains, and is started again")
        case "rolled":
            say(f"{done}/{total} {who} {event.reason}")
        case "roll_done":
            say(f"done: {done} of {total}")
            return Code.OK
        case "roll_stopped":
            say(f"stopped after {done} of {total}: {event.reason}")
            return Code.NOT_READY
    return None


async def _look(bus: Bus, record: ClusterRecord, roll: str) -> Rolling:
    """Ask the supervisor how far it is. Raises CommandError where it has died, or another one knows nothing of it."""
    found = await ask(bus, record, "status", Status)
    if found is None:
        raise CommandError(
            Code.NOT_RUNNING,
            "no supervisor answers any more, and nobody else goes on with this; `troupe up` brings back what is "
            "missing, and this command then restarts the rest",
        )
    for known in found.rolling:
        if known.id == roll:
            return known
    raise CommandError(
        Code.NOT_READY, "another supervisor has taken over and does not go on with this; call it again for the rest"
    )


def _over(found: Rolling) -> Code | None:
    """Tell of an end that was not heard."""
    if found.state == "done":
        say(f"done: {found.done} of {found.total}")
        return Code.OK
    if found.state == "stopped":
        say(f"stopped after {found.done} of {found.total}: {found.why}")
        return Code.NOT_READY
    return None
