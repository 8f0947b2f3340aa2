"""Makes the status that people see: from a living supervisor's world, or from what a dead one left behind."""

import socket
import time

from messages.config import without_secrets
from messages.gate import Gate
from messages.ids import parse_slot
from messages.lifecycle import Heartbeat, Registration, State
from messages.supervise import Rolling, SlotStatus, Status
from supervisor import outside, spawner
from supervisor.lives import Life, Phase
from supervisor.rolling import Roll
from supervisor.slots import Running
from supervisor.state import ClusterRecord, Folder, ProcessRecord
from supervisor.world import World


def of_world(world: World, running: dict[str, Running], record: ClusterRecord, now: float) -> Status:
    """Report what a supervisor knows; its pid, uptime and NATS server are the caller's to fill in."""
    return Status(
        cluster=record.cluster,
        host=socket.gethostname(),
        nats=[without_secrets(url) for url in record.nats.urls],
        http=_http_of(gates := [door.gate for door in world.doors.values() if door.gate is not None]) | record.http,
        gates=gates,
        slots=[_slot(life, world, running.get(slot), now) for slot, life in world.lives.slots.items()],
        dashboard=record.dashboard,
        rolling=[_rolling(roll) for roll in world.rolls.values()],
    )


def of_folder(folder: Folder, record: ClusterRecord, registry: list[Registration], gates: list[Gate]) -> Status:
    """Report what the state folder and the buckets say while no supervisor lives."""
    known = {registration.slot: registration for registration in registry}
    gone = "it waits for NATS" if folder.holder() is not None else "no supervisor starts it again"
    slots = [_left(slot, process, known.get(slot), record, gone) for slot, process in folder.slots().items()]
    slots += [_external(slot, known.get(slot), record) for slot in record.external]
    return Status(
        cluster=record.cluster,
        host=socket.gethostname(),
        nats=[without_secrets(url) for url in record.nats.urls],
        http=_http_of(gates) | record.http,
        gates=gates,
        slots=slots,
        dashboard=record.dashboard,
    )


def _rolling(roll: Roll) -> Rolling:
    return Rolling(
        id=roll.id,
        model=roll.model,
        role=roll.role,
        at=roll.at,
        done=roll.done,
        total=roll.total,
        state=roll.state,
        why=roll.why,
    )


def _slot(life: Life, world: World, running: Running | None, now: float) -> SlotStatus:
    spec = life.spec
    entry = world.roster.entries.get(spec.slot)
    if entry is not None and entry.registration.generation != life.generation:
        entry = None
    status = SlotStatus(
        slot=spec.slot,
        role=spec.role,
        model=spec.model,
        state=life.phase,
        seconds=round(now - life.since, 3),
        live=life.phase is Phase.READY and entry is not None and entry.live,
        generation=life.generation,
        restarts=life.restarts,
        reason=life.reason,
        planned=life.planned,
        pid=running.process.pid if running is not None else None,
        gpus=list(spec.gpus),
        spawn=running.record.spawn if running is not None else spec.spawn,
        stage=_stage(life, running, now),
        load_seconds=entry.registration.load_seconds if entry is not None else 0.0,
        http=(entry.registration.http or "") if entry is not None else "",
        events=_events(entry.registration) if entry is not None else [],
        recovery=life.recovered.stages if life.recovered is not None else {},
        recovered=round(now - life.recovered.at, 3) if life.recovered is not None else 0.0,
        standby=life.phase is Phase.STANDBY,
    )
    if spec.external:
        _add_registered(status, entry.registration if entry is not None else None)
    return _with_figures(status, entry.beat if entry is not None else None)


def _stage(life: Life, running: Running | None, now: float) -> str:
    """Say what a slot that is not ready yet is at; one that is to be forked waits for its parent's imports."""
    if life.phase is Phase.WAITING and life.behind:
        return f"GPU: after {life.behind}"
    if life.phase is Phase.WAITING and life.clear_by > now:
        return "GPU: memory"
    if life.phase is Phase.STARTING and life.spec.spawn == "prefork":
        return "import"
    return running.stage if running is not None and life.phase is Phase.LOADING else ""


def _left(
    slot: str, process: ProcessRecord, registered: Registration | None, record: ClusterRecord, gone: str
) -> SlotStatus:
    named = parse_slot(slot)
    alive = spawner.lives(process)
    ours = registered if registered is not None and registered.generation == process.generation and alive else None
    return SlotStatus(
        slot=slot,
        role=named.role,
        model=record.models.get(named.alias, named.alias),
        state=(ours.state if ours is not None else State.LOADING) if alive else State.STOPPED,
        seconds=round(time.time() - process.started, 3),
        live=ours is not None and ours.state is State.READY,
        standby=ours is not None and ours.state is State.STANDBY,
        generation=process.generation,
        restarts=process.restarts,
        reason=process.reason if alive else f"its process is gone, and {gone}",
        pid=process.pid if alive else None,
        gpus=ours.gpus if ours is not None else [],
        spawn=process.spawn,
        load_seconds=ours.load_seconds if ours is not None else 0.0,
        http=(ours.http or "") if ours is not None else "",
        events=_events(ours) if ours is not None else [],
    )


def _external(slot: str, registered: Registration | None, record: ClusterRecord) -> SlotStatus:
    """Say what the registry says of an external slot; whether it still lives nobody has looked."""
    named = parse_slot(slot)
    status = SlotStatus(
        slot=slot,
        role=named.role,
        model=record.models.get(named.alias, named.alias),
        state=registered.state if registered is not None else Phase.WAITING,
        seconds=round(time.time() - registered.started, 3) if registered is not None else 0.0,
        live=registered is not None and registered.state is State.READY,
        generation=registered.generation if registered is not None else 0,
        spawn="external",
        http=(registered.http or "") if registered is not None else "",
        events=_events(registered) if registered is not None else [],
    )
    _add_registered(status, registered)
    return status


def _add_registered(status: SlotStatus, registered: Registration | None) -> None:
    """Say where an external slot's actor runs, by its own word; while there is none, who is to start it."""
    if registered is not None:
        status.host, status.pid, status.gpus = registered.host, registered.pid, registered.gpus
    elif not status.reason:
        status.reason = outside.WAITS


def _http_of(gates: list[Gate]) -> dict[str, str]:
    """The first door that each gate names: for those that other managers opened."""
    return {gate.alias: gate.http[0] for gate in gates if gate.http}


def _events(registration: Registration) -> list[str]:
    """Where a slot's KV events are to be had by ZMQ, if they are left there."""
    return [source.endpoint for source in registration.kv_sources] if registration.events == "zmq" else []


def _with_figures(status: SlotStatus, beat: Heartbeat | None) -> SlotStatus:
    if beat is not None and status.state in (Phase.STANDBY, Phase.READY, Phase.DRAINING):
        status.in_flight = beat.in_flight
        status.queued = beat.queued
        status.capacity = beat.capacity
        status.kv_used = beat.kv_used
        status.kv_total = beat.kv_total
        status.rss_bytes = beat.rss_bytes
        status.tokens = beat.tokens
        status.probe = beat.probe
    return status
