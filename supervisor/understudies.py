"""Decides who of a role with understudies works and who stands by: pure, `(lives, now) -> (lives, commands)`.

Every slot of such a role loads to standby: registered, warm, subscribed to no work, counted by no gate. Whenever fewer
work than the cast's `count`, one that stands by is called, and is at work within milliseconds: it subscribes, and says
so in the registry. So a death, a drain and the very start are one case, and whoever has died is the next understudy.

One that is asked to go, and can be stood in for, goes when another has taken over. Should too many be at work, because
a call was answered after its time or the configuration has changed, the last that came goes back to standby by a
planned restart.

Nobody is called while no supervisor lives. Only who watches the processes knows at once that one is dead; another
understudy would see no more than silence, which proves nothing (a lease alone ends nobody), and two at work where the
GPUs are for one would be the worse evil. The next supervisor calls as soon as it has read the registry.
"""

from typing import Final

import msgspec

from messages.ids import Role
from supervisor.acts import Promote, Refused, SlotCommand
from supervisor.ending import terminate
from supervisor.lives import STAYS, Life, Lives, Phase

CALL: Final = 2.0
"""Seconds after which a call has found no answer."""
CALL_AGAIN: Final = 0.5
SURPLUS: Final = 5.0
"""Seconds for which one too many may be at work: a hand-over takes some of them."""


def step(lives: Lives, now: float) -> tuple[Lives, list[SlotCommand]]:
    """See to it that as many work as should; to be called when all that is known has been taken in."""
    commands: list[SlotCommand] = []
    if lives.ending == "no" and lives.bus:
        for group in _groups(lives):
            for life in _one(group, now, commands):
                lives = lives.having(life)
        for life in [life for life in lives.slots.values() if not life.spec.actives]:
            # From a time when the configuration had understudies for its role, or has them now and we do not know yet.
            if life.phase is Phase.STANDBY and _may_be_called(life, now):
                commands.append(Promote(life.spec.slot, life.generation))
                lives = lives.having(msgspec.structs.replace(life, call="asked", called=now))
    return lives, commands


def refused(lives: Lives, refused: Refused, now: float) -> tuple[Lives, list[SlotCommand]]:
    """Take in that one has not come; one of an earlier life, or that has come after all, changes nothing."""
    life = lives.slots.get(refused.slot)
    if life is None or life.phase is not Phase.STANDBY or life.generation != refused.generation:
        return lives, []
    text = f"was called to work and did not come: {refused.why}"
    note = life.note("refused", text, refused.why, bad=True)
    return lives.having(msgspec.structs.replace(life, call="refused", called=now)), [note]


def _groups(lives: Lives) -> list[list[Life]]:
    groups: dict[tuple[str, Role], list[Life]] = {}
    for life in lives.slots.values():
        if life.spec.actives and not life.spec.external:
            groups.setdefault((life.spec.alias, life.spec.role), []).append(life)
    return list(groups.values())


def _one(group: list[Life], now: float, commands: list[SlotCommand]) -> list[Life]:
    """Decide on the slots of one role; return those that change."""
    wanted = group[0].spec.actives
    at_work = [life for life in group if life.phase is Phase.READY and life.hand_over == STAYS]
    going = [life for life in group if life.phase is Phase.READY and life.hand_over != STAYS]
    waiting = [life for life in group if life.phase is Phase.STANDBY and life.intent == "run"]
    coming = [life for life in waiting if life.call == "asked" and now - life.called < CALL]
    # Who has not come when called is called again only after those who have not been.
    spare = sorted((life for life in waiting if _may_be_called(life, now)), key=lambda life: life.called)
    called = spare[: max(0, wanted - len(at_work) - len(coming))]
    commands += [Promote(life.spec.slot, life.generation) for life in called]
    changed = [msgspec.structs.replace(life, call="asked", called=now) for life in called]
    if len(at_work) >= wanted or not (coming or called):
        changed += [terminate(life, now, commands) for life in going]
    if len(at_work) > wanted:
        last = max(at_work, key=lambda life: life.since)
        if now - last.since >= SURPLUS:
            text = "is one too many at work: it goes back to standing by"
            commands.append(last.note("surplus", text, text, planned=True))
            changed.append(terminate(msgspec.structs.replace(last, intent="again"), now, commands))
    return changed


def _may_be_called(life: Life, now: float) -> bool:
    patience = {"": 0.0, "asked": CALL, "refused": CALL_AGAIN}[life.call]
    return now - life.called >= patience
