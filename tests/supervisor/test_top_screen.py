"""The screen of `troupe top` as data: it fits any size, says what is wrong in words; no name steers the terminal."""

import itertools

import pytest

from messages.gate import Gate, Missing
from messages.lifecycle import Event
from messages.supervise import SlotStatus, Status
from supervisor.recovery import STAGES
from supervisor.top.screen import draw
from supervisor.top.view import Known, Order, Quit, ShowLog, Ui
from supervisor.traffic import Point

NOW, WALL = 1_000.0, 1_795_385_509.0
HOSTILE = "evil\x1b[2Jname\nwith\x07bells"


def slot(name: str, state: str = "ready", **more: object) -> SlotStatus:
    role = name.split("-")[-2]
    fields: dict[str, object] = {"slot": name, "role": role, "model": "demo", "state": state, "seconds": 5.0}
    return SlotStatus(**(fields | {"live": state == "ready"} | more))  # type: ignore[arg-type]


def known(*slots: SlotStatus, **gate: object) -> Known:
    """A cluster of which this has been heard a moment ago."""
    made = Gate(**({"model": "demo", "alias": "demo", "open": True, "epoch": 3, "since": WALL} | gate))  # type: ignore[arg-type]
    status = Status(cluster="troupe", host="here", supervisor=7, uptime=60.0, nats_up=True, gates=[made])
    status.slots = list(slots)
    return Known(status=status, heard=NOW, trouble="", points={"demo": Point(at=WALL, requests=2.0, ttft_p50=0.02)})


def text(known: Known, ui: Ui, width: int = 80, height: int = 24, now: float = NOW) -> str:
    """What it shows, as text."""
    rows = draw(known, ui, width, height, now, WALL)
    return "\n".join("".join(part.text for part in row) for row in rows)


def cast(count: int) -> list[SlotStatus]:
    return [slot(f"demo-{role}-{at}") for role in ("prefill", "decode", "processor") for at in range(count)]


def busy() -> tuple[Known, Ui]:
    """A cluster with something of everything."""
    recovery = dict.fromkeys(STAGES, 0.1)
    bad = slot("demo-decode-0", "failed", reason=HOSTILE * 9, restarts=12, generation=1_234, recovery=recovery)
    found = known(bad, *cast(30)[1:], degraded=True, missing=[Missing(what=HOSTILE, why="x")])
    for number in range(40):
        event = Event(topic="restart", of="demo-decode-0", what="died", at=WALL + number, generation=number)
        event.reason = HOSTILE
        found.events.append(event)
    return found, Ui(chosen="demo-decode-0")


def test_every_size_is_filled_and_none_is_exceeded() -> None:
    found, ui = busy()
    for (width, height), below in itertools.product(
        [(40, 8), (41, 9), (80, 24), (80, 15), (200, 60), (120, 16)], ["events", "log", "help"]
    ):
        ui.below = below  # type: ignore[assignment]
        rows = text(found, ui, width, height).split("\n")
        assert len(rows) == height
        assert max(map(len, rows)) <= width
        assert "> decode-0" in "\n".join(rows), "the chosen slot is in sight"
    assert text(found, ui, 39, 24) == "at least 40 x 8, please"
    assert len(text(found, ui, 10, 3)) <= 10


def test_no_reason_and_no_name_steers_the_terminal() -> None:
    found, ui = busy()
    shown = text(found, ui, 200, 60)
    assert "evil·[2Jname·with·bells" in shown
    assert all(char == "\n" or char.isprintable() for char in shown)


def test_the_last_of_many_slots_can_be_chosen_and_seen() -> None:
    found, ui = known(*cast(70)), Ui()
    for _ in range(300):
        ui.press("down", found, NOW)
    assert ui.chosen == "demo-processor-69"
    assert "> processor-69" in text(found, ui)
    ui.press("up", found, NOW)
    assert "> processor-68" in text(found, ui)


def test_what_is_wrong_is_said_in_words() -> None:
    found = known(slot("demo-decode-0", "waiting", stage="GPU: memory"), slot("demo-decode-1", live=False))
    shown = text(found, Ui())
    for word in (
        "waiting GPU: mem…",
        "ready, silent",
        "gate open",
        "2.0 req/s",
        "0 of 2 slots ready, 1 waiting, 1 silent",
    ):
        assert word in shown
    assert "STALE" not in shown
    assert "STALE for 9.0 s" in text(found, Ui(), now=NOW + 9)
    found.trouble = "NATS is away"
    assert "STALE for 1.0 s: NATS is away" in text(found, Ui(), now=NOW + 1)
    shut = known(slot("demo-decode-0", "failed"), open=False, missing=[Missing(what="demo-decode-0", why="failed")])
    assert "gate CLOSED: missing demo-decode-0" in text(shut, Ui())
    assert "connecting" in text(Known(), Ui())


def test_orders_are_asked_for_and_only_yes_carries_them_out() -> None:
    found, ui = known(*cast(1)), Ui()
    assert ui.press("r", found, NOW) is None
    assert "choose a slot first" in text(found, ui)
    ui.press("down", found, NOW)
    for key, what, then in (("d", "drain", "stays stopped"), ("r", "restart", "starts anew")):
        assert ui.press(key, found, NOW) is None
        assert f"y/n  {what} demo-prefill-0? It finishes what it has, then {then}." in text(found, ui)
        assert ui.press("x", found, NOW) is None
        assert "nothing done" in text(found, ui)
        ui.press(key, found, NOW)
        assert ui.press("y", found, NOW) == Order(what, "demo-prefill-0")  # type: ignore[arg-type]
    assert ui.press("l", found, NOW) == ShowLog("demo-prefill-0")
    assert ui.press("q", found, NOW) == Quit()


@pytest.mark.parametrize(("end", "left"), [("enter", "decode"), ("escape", "")])
def test_a_filter_is_typed_and_holds_for_slots_and_events(end: str, left: str) -> None:
    found, ui = known(*cast(2)), Ui()
    found.events.append(Event(topic="gate", of="demo", what="opened", at=WALL))
    found.events.append(Event(topic="restart", of="demo-decode-1", what="ready", at=WALL, generation=2))
    for key in ["/", *"decodeq", "backspace", end]:
        assert ui.press(key, found, NOW) is None
    assert ui.filter == left
    shown = text(found, ui)
    assert ("prefill-0" in shown, "opened" in shown) == (not left, not left)
    assert "demo-decode-1#2" in shown
