"""`troupe ping`: whether a slot, the supervisor or NATS answers; a health check for managers of containers."""

import asyncio
from argparse import Namespace
from pathlib import Path

import msgspec

from messages import codec
from messages.bus import Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.config import Nats, shown
from messages.ids import parse_slot, short
from messages.lifecycle import Answer, State
from messages.subjects import Subjects
from messages.supervise import Status
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import ask, connected, folder_of, read_config, record_of, say
from supervisor.state import ClusterRecord

PING_SECONDS = 3.0


def ping(options: Namespace) -> Code:
    """Ask once; the exit code says whether the answer was a good one."""
    if options.WHAT not in ("nats", "supervisor"):
        try:
            parse_slot(options.WHAT)
        except ValueError as error:
            raise CommandError(Code.USAGE, f"{error}; `supervisor` and `nats` can be asked, too") from None
    return asyncio.run(_ping(_record(options), options.WHAT))


def _record(options: Namespace) -> ClusterRecord:
    """Say how the cluster is reached: by its configuration alone, or as the state folder has it."""
    cluster = read_config(Path(options.config)) if options.config is not None else None
    if cluster is None or not cluster.nats.urls:
        return record_of(folder_of(options))
    return ClusterRecord(cluster=cluster.cluster, config=options.config, nats=cluster.nats, embedded=False)


async def _ping(record: ClusterRecord, what: str) -> Code:
    async with connected(record) as bus:
        if what == "nats":
            return await _nats(bus, record.nats)
        if what == "supervisor":
            return await _supervisor(bus, record)
        return await _slot(bus, record, what)


async def _nats(bus: Bus, nats: Nats) -> Code:
    try:
        await bus.require_jetstream()
    except BusError as error:
        raise CommandError(Code.FAILED, str(error)) from None
    say(f"NATS at {shown(nats.urls)} is there, with JetStream, and takes messages of {bus.max_payload} bytes")
    return Code.OK


async def _supervisor(bus: Bus, record: ClusterRecord) -> Code:
    found = await ask(bus, record, "status", Status)
    if found is None:
        raise CommandError(Code.NOT_RUNNING, "no supervisor answers")
    gates = ", ".join(f"{gate.model} {'open' if gate.open else 'closed'}" for gate in found.gates)
    say(f"supervisor on {found.host} (pid {found.supervisor}) is there; gates: {gates or 'none decided yet'}")
    return Code.OK


async def _slot(bus: Bus, record: ClusterRecord, slot: str) -> Code:
    try:
        answer = await bus.request(Subjects(record.cluster).control(slot, "ping"), timeout=PING_SECONDS)
        found = codec.from_json(answer.data, Answer)
    except NobodyThereError:
        raise CommandError(Code.NOT_RUNNING, f"{slot} is not there: it is not ready yet, or has ended") from None
    except SilentError:
        raise CommandError(Code.NOT_READY, f"{slot} does not answer within {PING_SECONDS:g} s: it hangs") from None
    except (ServiceError, BusError, msgspec.DecodeError) as error:
        raise CommandError(Code.FAILED, f"{slot} cannot be asked: {error}") from None
    say(f"{short(slot, found.generation)} is {found.state}")
    return Code.OK if found.state is State.READY else Code.NOT_READY
