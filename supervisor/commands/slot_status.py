"""`troupe status SLOT`: all that is known of one slot, its last recovery by stage included."""

from messages.ids import short
from messages.supervise import SlotStatus, Status
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import span


def find(found: Status, name: str) -> SlotStatus:
    """Return the slot of this name; raises CommandError if there is none."""
    for slot in found.slots:
        if slot.slot == name:
            return slot
    there = ", ".join(slot.slot for slot in found.slots)
    raise CommandError(Code.USAGE, f"there is no slot {name!r} here; there are {there or 'none'}")


def as_text(slot: SlotStatus) -> str:
    """Lay one slot out for people."""
    state = "ready, silent" if slot.state == "ready" and not slot.live else slot.state
    stage = f" ({slot.stage})" if slot.stage else ""
    lines = [f"{short(slot.slot, slot.generation)} {state}{stage} for {span(slot.seconds)}"]
    rows = {
        "model": slot.model,
        "process": _process(slot),
        "GPU": ", ".join(map(str, slot.gpus)),
        "HTTP": slot.http,
        "loaded in": span(slot.load_seconds) if slot.load_seconds else "",
        "in flight": f"{slot.in_flight} of {slot.capacity}, {slot.queued} queued" if slot.capacity else "",
        "KV blocks": f"{slot.kv_used} of {slot.kv_total}" if slot.kv_total else "",
        "memory": f"{slot.rss_bytes / 2**20:.0f} MiB" if slot.rss_bytes else "",
        "restarts": str(slot.restarts),
        "last reason": f"{slot.reason}{' (planned)' if slot.planned else ''}" if slot.reason else "",
        "recovered": _recovered(slot),
    }
    lines += [f"  {name:<12}{value}" for name, value in rows.items() if value]
    lines += [f"    {name.replace('_', '-'):<10}{seconds:8.3f} s" for name, seconds in slot.recovery.items()]
    return "\n".join(lines)


def _process(slot: SlotStatus) -> str:
    where = f" on {slot.host}" if slot.host else ""
    return f"pid {slot.pid}{where} ({slot.spawn})" if slot.pid else ""


def _recovered(slot: SlotStatus) -> str:
    if not slot.recovery:
        return ""
    return f"{span(slot.recovered)} ago, {sum(slot.recovery.values()):.2f} s after it died:"
