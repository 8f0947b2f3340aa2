"""`troupe log-level`: how much a slot or the supervisor logs, changed while it runs; a restart forgets it."""

import asyncio
from argparse import Namespace

import msgspec

from messages import codec
from messages.bus import Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.ids import short
from messages.lifecycle import Answer, Control
from messages.subjects import Subjects
from messages.supervise import Order, Said
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import ask, check_slot, connected, folder_of, record_of, say
from supervisor.state import ClusterRecord, Folder

SECONDS = 3.0


def log_level(options: Namespace) -> Code:
    """Change from which level on somebody logs."""
    return asyncio.run(_change(folder_of(options), options.SLOT, options.LEVEL))


async def _change(folder: Folder, who: str, level: str) -> Code:
    record = record_of(folder)
    if who != "supervisor":
        check_slot(folder, record, who, "supervisor")
    async with connected(record) as bus:
        said = await (_supervisor(bus, record, level) if who == "supervisor" else _slot(bus, record, who, level))
    say(said)
    return Code.OK


async def _supervisor(bus: Bus, record: ClusterRecord, level: str) -> str:
    said = await ask(bus, record, "log-level", Said, asked=Order(level=level))
    if said is None:
        raise CommandError(Code.NOT_RUNNING, "no supervisor answers; `troupe up` starts one")
    if not said.done:
        raise CommandError(Code.REFUSED, said.message)
    return said.message


async def _slot(bus: Bus, record: ClusterRecord, slot: str, level: str) -> str:
    subject = Subjects(record.cluster).control(slot, "log-level")
    try:
        answer = await bus.request(subject, codec.to_json(Control(level=level)), timeout=SECONDS)
        found = codec.from_json(answer.data, Answer)
    except NobodyThereError:
        raise CommandError(Code.FAILED, f"{slot} does not listen: it is not ready, or does not run") from None
    except SilentError:
        raise CommandError(Code.FAILED, f"{slot} did not answer within {SECONDS:g} s") from None
    except ServiceError as error:
        raise CommandError(Code.REFUSED, f"{slot}: {error}") from None
    except (BusError, msgspec.DecodeError) as error:
        raise CommandError(Code.FAILED, f"{slot}: {error}") from None
    return f"{short(slot, found.generation)} {found.message}"
