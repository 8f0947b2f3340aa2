"""The checker is checked: a history that breaks a rule is found by that rule and no other, a good one by none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from supervisor.drills import history
from supervisor.drills.checker import Verdict, check
from supervisor.drills.history import Beats, GateSeen, Happened, Head, Line, Mark, Memory, Registered, Worked
from supervisor.drills.records import Piece, Record, Taken

SLOT = "demo-decode-0"
Change = Callable[[list[Line]], None]


def request(id: str, sent: float, *, reference: bool = False) -> Record:
    """A request over NATS that went well."""
    return Record(
        id,
        "nats",
        0,
        sent,
        5.0,
        pieces=[Piece(sent + 0.1, 1, 0, [10, 11], "ab"), Piece(sent + 0.15, 1, 2, [12, 13], "cd")],
        words=["Done of attempt 1"],
        outcome="done",
        told_tokens=4,
        ended=sent + 0.2,
        taken=[Taken(sent + 0.01, 1, "demo-processor-0-g1")],
        reference=reference,
    )


def restart(at: float, what: str, generation: int, *, planned: bool = False) -> Happened:
    return Happened(at=at, topic="restart", of=SLOT, what=what, generation=generation, planned=planned)


def good() -> list[Line]:
    """A decode actor is killed at 10 s, which closes the gate from 10.1 to 12 s; three requests go well."""
    return [
        Head(run="r", drill="kill", wall=0, monotonic=0, alias="demo", budgets={SLOT: (1, 60.0)}, itl_p99=0.2, gpus=1),
        Mark(at=0.0, name="observed"),
        Mark(at=10.0, name="injected"),
        Mark(at=12.5, name="recovered"),
        Registered(at=0.1, slot="demo-processor-0", generation=1, state="ready"),
        Registered(at=0.1, slot=SLOT, generation=1, state="ready"),
        Registered(at=12.0, slot=SLOT, generation=2, state="ready"),
        Beats(slot=SLOT, generation=1, first=0.5, last=9.9),
        Beats(slot=SLOT, generation=2, first=12.1, last=20.0),
        Worked(slot=SLOT, generation=1, first=1.0, last=10.0, frames=9),
        Worked(slot=SLOT, generation=2, first=12.1, last=20.0, frames=9),
        Memory(at=1.0, gpu=0, used=40_000),
        Memory(at=11.5, gpu=0, used=39_000),
        restart(10.05, "died", 1),
        restart(10.3, "started", 2),
        restart(12.0, "ready", 2),
        GateSeen(at=0.1, alias="demo", open=True, epoch=1, since=-5.0),
        GateSeen(at=10.1, alias="demo", open=False, epoch=2, since=10.06),
        GateSeen(at=12.05, alias="demo", open=True, epoch=3, since=12.0),
        request("reference", 1.0, reference=True),
        request("before", 5.0),
        request("during", 11.95),
        request("after", 15.0),
    ]


def record(lines: list[Line], id: str) -> Record:
    return next(line for line in lines if isinstance(line, Record) and line.id == id)


def verdicts(lines: list[Line]) -> dict[str, Verdict]:
    return {verdict.rule: verdict for verdict in check(lines)}


def test_a_good_history_keeps_every_rule() -> None:
    found = verdicts(good())
    assert {rule: verdict.state for rule, verdict in found.items()} == {f"I{n}": "kept" for n in range(1, 9)}
    assert all(verdict.looked_at for verdict in found.values())


def _no_last_word(lines: list[Line]) -> None:
    record(lines, "after").words.clear()


def _two_last_words(lines: list[Line]) -> None:
    record(lines, "after").words.append("Error of attempt 2")


def _never_ends(lines: list[Line]) -> None:
    record(lines, "after").outcome = "open"


def _late(lines: list[Line]) -> None:
    record(lines, "after").ended = 99.0


def _closed(lines: list[Line]) -> None:
    after = record(lines, "after")
    after.outcome, after.door = "closed", "http"


def _counted_twice(lines: list[Line]) -> None:
    lines.append(record(lines, "after"))


def _gap(lines: list[Line]) -> None:
    del record(lines, "after").pieces[0]


def _double(lines: list[Line]) -> None:
    pieces = record(lines, "after").pieces
    pieces.insert(1, pieces[0])


def _other_text(lines: list[Line]) -> None:
    pieces = record(lines, "after").pieces
    pieces[1] = pieces[1]._replace(token_ids=[12, 99], text="cX")


def _accepted_too_late(lines: list[Line]) -> None:
    lines.append(Happened(at=13.0, topic="actor", of="demo-processor-0", what="stopped", generation=1))


def _accepted_by_nobody(lines: list[Line]) -> None:
    record(lines, "after").taken[0] = Taken(15.0, 1, "demo-processor-0-g7")


def _worked_before_ready(lines: list[Line]) -> None:
    _swap(lines, Worked(slot=SLOT, generation=2, first=11.0, last=20.0, frames=9))


def _worked_after_its_end(lines: list[Line]) -> None:
    _swap(lines, Worked(slot=SLOT, generation=1, first=1.0, last=11.0, frames=9))


def _past_a_closed_gate(lines: list[Line]) -> None:
    during = record(lines, "during")
    at = lines.index(during)
    lines[at] = request("during", 11.0)


def _started_twice(lines: list[Line]) -> None:
    lines.append(restart(14.0, "started", 2))


def _registered_backwards(lines: list[Line]) -> None:
    lines.append(Registered(at=14.0, slot=SLOT, generation=1, state="ready"))


def _two_leases(lines: list[Line]) -> None:
    _swap(lines, Beats(slot=SLOT, generation=1, first=0.5, last=13.0))


def _too_often(lines: list[Line]) -> None:
    lines.append(restart(25.0, "died", 2))


def _given_up(lines: list[Line]) -> None:
    lines.append(restart(30.0, "gave_up", 2))


def _memory_kept(lines: list[Line]) -> None:
    lines.append(Memory(at=11.6, gpu=0, used=70_000))


def _slow_bystander(lines: list[Line]) -> None:
    pieces = record(lines, "during").pieces
    pieces[1] = pieces[1]._replace(at=pieces[0].at + 0.3)


def _swap(lines: list[Line], new: Beats | Worked) -> None:
    for at, line in enumerate(lines):
        if type(line) is type(new) and (line.slot, line.generation) == (new.slot, new.generation):
            lines[at] = new


@pytest.mark.parametrize(
    ("change", "rule", "says"),
    [
        (_no_last_word, "I1", "0 last words"),
        (_two_last_words, "I1", "2 last words"),
        (_never_ends, "I1", "no end"),
        (_late, "I1", "its deadline"),
        (_closed, "I1", "without a last word"),
        (_counted_twice, "I1", "twice"),
        (_gap, "I2", "position 2 after 0"),
        (_double, "I2", "position 0 after 2"),
        (_other_text, "I2", "other t"),
        (_accepted_too_late, "I3", "after its end"),
        (_accepted_by_nobody, "I3", "never seen ready"),
        (_worked_before_ready, "I3", "before it was ready"),
        (_worked_after_its_end, "I3", "after its end"),
        (_past_a_closed_gate, "I4", "after the gate had closed"),
        (_started_twice, "I5", "started as #2 after #2"),
        (_registered_backwards, "I5", "registered as #1 after #2"),
        (_two_leases, "I5", "both renewed their lease"),
        (_too_often, "I6", "2 times within 60 s; 1 are allowed"),
        (_given_up, "I6", "was given up"),
        (_memory_kept, "I7", "two lives had memory at once"),
        (_slow_bystander, "I8", "ITL p99 0.300 s"),
    ],
)
def test_a_broken_rule_is_found_and_no_other(change: Change, rule: str, says: str) -> None:
    lines = good()
    change(lines)
    found = {name: verdict for name, verdict in verdicts(lines).items() if verdict.state == "broken"}
    # An actor that ends is not seen to end by those who only count its leases, so nothing else breaks.
    assert set(found) == {rule}
    assert says in "\n".join(found[rule].broken)


def test_what_could_not_be_looked_at_is_skipped_and_says_why() -> None:
    lines = good()
    assert isinstance(lines[0], Head)
    lines[0] = replace(lines[0], gpus=0, itl_p99=None)
    found = verdicts([line for line in lines if not isinstance(line, GateSeen | Record)])
    skipped = {rule: verdict.why for rule, verdict in found.items() if verdict.state == "skipped"}
    assert set(skipped) == {"I1", "I2", "I4", "I7", "I8"}
    assert skipped["I7"] == "there is no GPU here"


def test_a_crash_before_ready_is_counted_apart() -> None:
    lines = good()
    lines += [restart(25.0, "started", 3), restart(25.5, "died", 3)]
    assert verdicts(lines)["I6"].state == "kept"
    lines += [restart(26.0, "started", 4), restart(26.5, "ready", 4), restart(27.0, "died", 4)]
    assert verdicts(lines)["I6"].state == "broken"


def test_what_was_held_up_on_its_way_may_arrive_after_its_senders_end() -> None:
    lines = good()
    _worked_after_its_end(lines)
    assert isinstance(lines[0], Head)
    lines[0] = replace(lines[0], held_up=[f"{SLOT}-g1"])
    assert verdicts(lines)["I3"].state == "kept"


def test_planned_restarts_are_no_crashes() -> None:
    lines = good()
    lines += [restart(25.0 + n, "died", 2, planned=True) for n in range(5)]
    assert verdicts(lines)["I6"].state == "kept"


def test_a_history_without_a_head_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="no head line"):
        check(good()[1:])


def test_a_history_is_read_as_it_was_written_and_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history.write(path, good()[:5])
    history.write(path, good()[5:])
    assert history.read(path) == good()
    with path.open("ab") as file:
        file.write(b'{"line":"mark","at":1')
    assert history.read(path) == good()
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ValueError, match=r"history.jsonl:\d+: "):
        history.read(path)
