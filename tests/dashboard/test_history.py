"""The newest events: cut to what can be shown, filtered, and without log lines for those without the token."""

import json
from typing import Any

from messages.event_log import Told
from messages.lifecycle import Event
from supervisor.dashboard.history import KEPT, History, shown

HOSTILE = '<script>alert("x")</script>'


def told(seq: int, of: str = "demo-decode-0", what: str = "died", topic: str = "restart", **more: Any) -> Told:
    return Told(seq, Event(topic=topic, of=of, what=what, at=1000.0 + seq, **more), b"")


def history(*events: Told) -> History:
    made = History()
    made.take(list(events), True)
    return made


def seqs(found: list[Any] | None) -> list[int] | None:
    return None if found is None else [line.seq for line in found]


def test_events_are_filtered() -> None:
    one = history(
        told(1),
        told(2, "demo-decode-1"),
        told(3, what="ready"),
        told(4, "demo", "closed", "gate"),
        told(5, topic="actor"),
    )
    assert seqs(one.select()) == [1, 2, 3, 4]
    assert seqs(one.select(quiet=False)) == [1, 2, 3, 4, 5]
    assert seqs(one.select(of="demo-decode-0")) == [1, 3]
    assert seqs(one.select(topic="gate")) == [4]
    assert seqs(one.select(topic="actor")) == [5]
    assert seqs(one.select(what="died", before=2)) == [1]
    assert seqs(one.select(since=1003.0)) == [3, 4]
    assert seqs(one.select(most=2)) == [3, 4]


def test_what_was_missed_is_told_where_it_can_be() -> None:
    one = history(*(told(seq) for seq in range(10, 20)))
    assert seqs(one.after(15, 100)) == [16, 17, 18, 19]
    assert seqs(one.after(19, 100)) == []
    assert one.after(20, 100) is None
    assert one.after(3, 100) is None
    assert one.after(10, 3) is None
    assert seqs(one.after(9, 100)) == list(range(10, 20))


def test_the_newest_alone_are_kept() -> None:
    one = history(*(told(seq) for seq in range(1, KEPT + 11)))
    assert len(one.select(most=KEPT * 2)) == KEPT
    assert one.find(10) is None
    assert one.find(11) is not None


def test_log_lines_are_counted_but_not_shown() -> None:
    one = history(told(1, detail={"last_lines": ["token=hunter2", "boom"], "code": 1}))
    (line,) = one.select()
    assert json.loads(bytes(line.shown))["detail"] == {"last_lines": 2, "code": 1}
    assert line.event.detail["last_lines"] == ["token=hunter2", "boom"]


def test_what_strangers_publish_is_cut_and_stays_text() -> None:
    big = {"x": "y" * 100_000}
    one = history(told(1, reason="r" * 100_000, detail=big), told(2, reason=HOSTILE))
    first, second = (json.loads(bytes(raw)) for raw in shown(one.select()))
    assert len(json.dumps(first)) < 5_000
    assert second["reason"] == HOSTILE
