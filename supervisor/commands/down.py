"""`troupe down`: end all that a state folder knows, supervisor or none."""

import asyncio
import os
import signal
from argparse import Namespace
from collections.abc import Iterable
from typing import Final

from messages import leftovers, procfs
from messages.ids import parse_slot, short
from supervisor import spawner, state
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of, say
from supervisor.dashboard.drills import end_playing
from supervisor.slots import end_parents
from supervisor.spawner import Process
from supervisor.spec import FRONT_TO_BACK
from supervisor.state import Folder, HeldError, ProcessRecord

ABORT_SECONDS: Final = 15.0
NATS_SECONDS: Final = 5.0


def down(options: Namespace) -> Code:
    """End the supervisor if one lives, which drains; then whatever is left."""
    folder = folder_of(options)
    if not folder.root.is_dir():
        say(f"nothing runs in {folder.root}")
        return Code.OK
    return asyncio.run(_down(folder, 0.0 if options.now else options.timeout))


async def _down(folder: Folder, patience: float) -> Code:
    record = folder.cluster()
    ended = await _end_supervisor(folder, patience)
    try:
        with folder.held():
            ended += await _end_rest(folder, patience)
    except HeldError as error:
        raise CommandError(Code.TAKEN, f"{error}; it was started meanwhile") from None
    if record is not None and record.external:
        say(f"{', '.join(record.external)}: external; what of these runs is for the manager that started it to end")
    say("everything has ended" if ended else f"nothing runs in {folder.root}")
    return Code.OK


async def _end_supervisor(folder: Folder, patience: float) -> int:
    """Ask the living supervisor to end everything; insist, and at last kill it."""
    pid = folder.holder()
    found = procfs.process(pid) if pid else None
    supervisor = await spawner.adopt(found.pid, found.start_time) if found is not None else None
    if supervisor is None:
        return 0
    say(f"supervisor (pid {supervisor.pid}): draining front to back")
    for seconds in (patience, ABORT_SECONDS):
        supervisor.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await supervisor.wait_alone()
                return 1
        except TimeoutError:
            say(f"not ended within {seconds:g} s; insisting" if seconds else "aborting what is left")
    supervisor.signal(signal.SIGKILL)
    await supervisor.wait_alone()
    return 1


async def _end_rest(folder: Folder, patience: float) -> int:
    """End the actors tier by tier, then the prefork parents, then the NATS server."""
    ended = int(await end_playing(folder.root))
    for tier in sorted(set(FRONT_TO_BACK.values())):
        ours = [(slot, record) for slot, record in folder.slots().items() if _tier(slot) == tier]
        ended += await _end_all(ours, patience)
        for slot, _ in ours:
            leftovers.clear(folder.slot(slot))
    await end_parents(folder)
    record = state.read(folder.nats / "process.json", ProcessRecord)
    if record is not None:
        if (server := await spawner.adopt(record.pid, record.start_time)) is not None:
            say(f"NATS server (pid {server.pid}): ending")
            await spawner.end(server, NATS_SECONDS)
            ended += 1
        os.unlink(folder.nats / "process.json")
    folder.cluster_file.unlink(missing_ok=True)
    return ended


async def _end_all(slots: Iterable[tuple[str, ProcessRecord]], patience: float) -> int:
    living: list[Process] = []
    for slot, record in slots:
        if (process := await spawner.adopt(record.pid, record.start_time)) is not None:
            say(f"{short(slot, record.generation)} (pid {process.pid}): {'draining' if patience else 'ending'}")
            living.append(process)
    await asyncio.gather(*(spawner.end(process, patience or 1.0) for process in living))
    return len(living)


def _tier(slot: str) -> int:
    try:
        return FRONT_TO_BACK[parse_slot(slot).role]
    except ValueError:
        return max(FRONT_TO_BACK.values())
