"""`troupe handle`: tell a slot's engine to pause, resume, flush, profile, sleep or wake."""

import asyncio
from argparse import Namespace
from typing import Final

import msgspec

from messages import codec
from messages.bus import BusError, NobodyThereError, ServiceError, SilentError
from messages.ids import short
from messages.lifecycle import Answer, Control
from messages.subjects import Subjects
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import check_slot, connected, folder_of, record_of, say
from supervisor.state import ClusterRecord, Folder

SECONDS: Final = 150.0
"""Seconds to wait for the answer: what an engine may take for the longest of them, beside `--seconds`."""


def handle(options: Namespace) -> Code:
    """Tell the slot, and say what it answers."""
    folder: Folder = folder_of(options)
    record = record_of(folder)
    check_slot(folder, record, options.SLOT)
    say(asyncio.run(_tell(record, options.SLOT, options.VERB, options.seconds)))
    return Code.OK


async def _tell(record: ClusterRecord, slot: str, verb: str, seconds: float) -> str:
    asked, patience = codec.to_json(Control(seconds=seconds)), SECONDS + seconds
    async with connected(record) as bus:
        try:
            answer = await bus.request(Subjects(record.cluster).control(slot, verb), asked, timeout=patience)
            found = codec.from_json(answer.data, Answer)
        except NobodyThereError:
            raise CommandError(Code.FAILED, f"{slot} does not listen: it is not ready, or does not run") from None
        except SilentError:
            raise CommandError(Code.FAILED, f"{slot} did not answer within {patience:g} s") from None
        except ServiceError as error:
            raise CommandError(Code.REFUSED, f"{slot}: {error}") from None
        except (BusError, msgspec.DecodeError) as error:
            raise CommandError(Code.FAILED, f"{slot}: {error}") from None
    return f"{short(slot, found.generation)} {found.message}"
