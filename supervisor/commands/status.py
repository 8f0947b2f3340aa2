"""`troupe status`: how a cluster is, for people or as JSON, at once or when it has become ready."""

import asyncio
import contextlib
from argparse import Namespace
from typing import Final

import msgspec

from messages import codec
from messages.bus import Bus, BusError
from messages.gate import Gate
from messages.ids import parse_slot
from messages.lifecycle import Registration
from messages.subjects import Subjects
from messages.supervise import SlotStatus, Status
from supervisor import report
from supervisor.commands import slot_status
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import ask, connected, folder_of, pretty, record_of, say, span, table
from supervisor.dashboard import token
from supervisor.state import ClusterRecord, Folder

RECORD_POLL: Final = 0.1
REASON_LENGTH: Final = 60


def status(options: Namespace) -> Code:
    """Show the cluster; the exit code says whether every gate is open."""
    folder = folder_of(options)
    found, ready = asyncio.run(_status(folder, options.wait_ready))
    if options.SLOT is not None:
        slot = slot_status.find(found, options.SLOT)
        say(pretty(slot) if options.json else slot_status.as_text(slot))
        return Code.OK if slot.state == "ready" and slot.live else Code.NOT_READY
    say(pretty(found) if options.json else as_text(found, token.read(folder.token_file)))
    return Code.OK if ready else Code.NOT_READY


async def _status(folder: Folder, wait: float | None) -> tuple[Status, bool]:
    if wait is not None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await _wait_until_open(folder)
    record = record_of(folder)
    try:
        async with connected(record) as bus:
            found = await ask(bus, record, "status", Status)
            if found is None:
                found = await from_buckets(bus, folder, record)
    except CommandError:
        # The bus is away: what the folder says is better than nothing.
        found = report.of_folder(folder, record, [], [])
    if found.supervisor is None:
        found.supervisor = folder.holder()
    gates = {gate.alias: gate for gate in found.gates}
    return found, all(alias in gates and gates[alias].open for alias in record.models)


async def _wait_until_open(folder: Folder) -> None:
    """Wait until every model's gate is open; the cluster may only just be starting."""
    while True:
        while (record := folder.cluster()) is None:  # noqa: ASYNC110 (a file, which nobody announces)
            await asyncio.sleep(RECORD_POLL)
        with contextlib.suppress(CommandError, BusError):
            async with connected(record) as bus:
                await _gates_open(bus, record)
                return
        await asyncio.sleep(RECORD_POLL)


async def _gates_open(bus: Bus, record: ClusterRecord) -> None:
    bucket = await bus.bucket(Subjects(record.cluster).gate_bucket)
    gates: dict[str, bool] = {}
    all_open = asyncio.Event()

    def change(alias: str, value: bytes | None) -> None:
        gates[alias] = value is not None and codec.from_json(value, Gate).open
        if all(gates.get(model) for model in record.models):
            all_open.set()

    def whole(values: dict[str, bytes]) -> None:
        gates.clear()
        for alias, value in values.items():
            change(alias, value)

    watch = asyncio.ensure_future(bucket.keep(">", whole, change))
    opened = asyncio.ensure_future(all_open.wait())
    try:
        await asyncio.wait({watch, opened}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
    finally:
        for task in (watch, opened):
            task.cancel()
        await asyncio.gather(watch, opened, return_exceptions=True)


async def from_buckets(bus: Bus, folder: Folder, record: ClusterRecord) -> Status:
    """Put together without a supervisor what the registry, the gate and the folder know."""
    subjects = Subjects(record.cluster)
    registry: list[Registration] = []
    try:
        registrations = await bus.bucket(subjects.registry_bucket)
        for slot in [*folder.slots(), *record.external]:
            there = await registrations.get(subjects.registration_key(parse_slot(slot).role, slot))
            if there is not None:
                registry.append(codec.from_json(there[0], Registration))
        bucket = await bus.bucket(subjects.gate_bucket)
        written = [await bucket.get(alias) for alias in record.models]
        gates = [codec.from_json(there[0], Gate) for there in written if there is not None]
    except (BusError, msgspec.DecodeError) as error:
        raise CommandError(Code.FAILED, f"the registry cannot be read: {error}") from None
    found = report.of_folder(folder, record, registry, gates)
    found.nats_up = True
    return found


def as_text(found: Status, secret: str = "") -> str:
    """Lay a status out for people; `secret` is the token for the page's actions, if they may see it."""
    alive = f"supervisor pid {found.supervisor}, up {span(found.uptime)}" if found.uptime else "no answer from it"
    lines = [f"cluster {found.cluster} on {found.host}, {alive if found.supervisor else 'no supervisor lives'}"]
    embedded = f" (embedded, pid {found.nats_pid})" if found.nats_pid else ""
    lines.append(f"NATS    {', '.join(found.nats)}{embedded}{'' if found.nats_up else ', away'}")
    lines += [f"HTTP    {url}  ({alias})" for alias, url in found.http.items()]
    if found.dashboard:
        lines.append(f"page    {found.dashboard}{f'  (token for actions: {secret})' if secret else ''}")
    lines += [f"metrics {slot.http}/metrics" for slot in found.slots if slot.role == "publisher" and slot.http]
    lines += [f"events  {slot.slot}: {', '.join(slot.events)}" for slot in found.slots if slot.events]
    for gate in found.gates:
        how = "open" if gate.open else "closed"
        missing = ", ".join(f"{item.what} ({item.why})" for item in gate.missing)
        how += f"{', degraded' if gate.degraded else ''}{': missing ' + missing if missing else ''}"
        lines.append(f"gate    {gate.model}: {how} (epoch {gate.epoch})")
    for roll in found.rolling:
        if roll.state == "going":
            what = f"{roll.model}'s {roll.role} slots" if roll.role else roll.model
            at = f", {roll.at} is at it" if roll.at else ""
            lines.append(f"restart {what}: {roll.done} of {roll.total} done{at}")
    if found.slots:
        heads = [
            "SLOT",
            "STATE",
            "FOR",
            "GEN",
            "RESTARTS",
            "IN FLIGHT",
            "QUEUED",
            "KV",
            "PROBE",
            "GPU",
            "PID",
            "LAST REASON",
        ]
        lines += ["", table([heads, *(_row(slot) for slot in found.slots)])]
    for slot in found.slots:
        if len(_reason(slot)) > REASON_LENGTH:
            lines += ["", f"{slot.slot}: {_reason(slot)}"]
    if not found.supervisor:
        lines += ["", "Nothing that dies is started again until `troupe up` has been called."]
    return "\n".join(lines)


def _row(slot: SlotStatus) -> list[str]:
    state = f"{slot.state} ({slot.stage})" if slot.stage else slot.state
    if slot.state == "ready" and not slot.live:
        state = "ready, silent"
    return [
        slot.slot,
        state,
        span(slot.seconds),
        str(slot.generation),
        str(slot.restarts),
        f"{slot.in_flight}/{slot.capacity}" if slot.capacity else str(slot.in_flight),
        str(slot.queued),
        f"{100 * slot.kv_used / slot.kv_total:.0f}%" if slot.kv_total else "-",
        _probe(slot),
        ",".join(map(str, slot.gpus)) or "-",
        f"external, {slot.host or 'not there'}" if slot.spawn == "external" else str(slot.pid or "-"),
        reason if len(reason := _reason(slot)) <= REASON_LENGTH else f"{reason[: REASON_LENGTH - 1]}…",
    ]


def _probe(slot: SlotStatus) -> str:
    return f"{slot.probe.result}, {span(slot.probe.age)} ago" if slot.probe is not None else "-"


def _reason(slot: SlotStatus) -> str:
    return f"{slot.reason}{' (planned)' if slot.planned else ''}" if slot.reason else "-"
