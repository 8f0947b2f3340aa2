"""Which slot a fault is for: by name, by role, the only one of a role, or the busiest. Pure."""

from collections.abc import Callable

from messages.ids import ROLES
from messages.supervise import SlotStatus, Status


class TargetError(Exception):
    """There is no such slot to hurt; the text says why."""


def choose(
    status: Status,
    model: str,
    text: str,
    taken: frozenset[str] = frozenset(),
    streams: Callable[[str], int] | None = None,
) -> str:
    """Choose a slot: `demo-decode-0`, `decode`, `only decode`, `busiest decode` or `busiest`, none of those `taken`.

    Only what is ready now is chosen by role. `streams` tells how many streams a slot is in the middle of, where that is
    known better than by its last heartbeat. Raises TargetError.
    """
    words = text.split()
    way, role = (words[0], words[-1] if len(words) == 2 else "") if words else ("", "")
    if len(words) == 1 and text not in ROLES and text != "busiest":
        return _named(status, text).slot
    if len(words) == 1 and text in ROLES:
        way, role = "first", text
    if way not in ("first", "only", "busiest") or (role and role not in ROLES) or (way == "only" and not role):
        raise TargetError(
            f"target {text!r} is not understood; a slot's name, a role ({', '.join(ROLES)}), "
            "'only ROLE', 'busiest ROLE' or 'busiest' is"
        )
    ours = [slot for slot in status.slots if (slot.role == role if role else slot.model == model)]
    ours = [slot for slot in ours if slot.model in (model, "")]
    ready = [slot for slot in ours if slot.state == "ready" and slot.spawn != "external" and slot.slot not in taken]
    if not ready:
        raise TargetError(f"no {role or 'slot'} of {model} that this folder's supervisor has started is ready")
    if way == "only" and len(ours) > 1:
        raise TargetError(f"{role} is no only one: there are {', '.join(slot.slot for slot in ours)}")
    if way != "busiest":
        return ready[0].slot
    return max(ready, key=lambda slot: (streams(slot.slot) if streams is not None else 0, slot.in_flight)).slot


def _named(status: Status, name: str) -> SlotStatus:
    for slot in status.slots:
        if slot.slot == name:
            if slot.spawn == "external":
                raise TargetError(f"{name} is external: its own manager starts it, and only that one may hurt it")
            if slot.pid is None:
                raise TargetError(f"{name} has no process now ({slot.state})")
            return slot
    raise TargetError(f"there is no slot {name!r}; there are {', '.join(slot.slot for slot in status.slots)}")
