"""Lines of logs: JSON that says who, about what request and why; the same as text for people; levels that change."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from messages import logs
from messages.config import shown
from supervisor import state

LOG = logging.getLogger("troupe.test")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Any:
    """Leave logging as it was."""
    root = logging.getLogger(logs.ROOT)
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def written(who: str, how: logs.Format = "auto", stream: io.StringIO | None = None) -> str:
    """Log a fact about a request and a failure; return what was written."""
    stream = stream or io.StringIO()
    logs.start(who, "info", how, stream)
    LOG.debug("too little")
    LOG.info("request %s: went\non", "r-1")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        LOG.exception("a fact")
    return stream.getvalue()


def test_a_line_of_json_is_one_fact_with_slot_generation_and_request() -> None:
    first, second = [json.loads(line) for line in written("demo-decode-0#7").splitlines()]
    assert (first["slot"], first["generation"], first["request"]) == ("demo-decode-0", 7, "r-1")
    assert (first["text"], first["level"], first["at"][-1]) == ("request r-1: went\non", "info", "Z")
    assert (second["level"], second["text"]) == ("error", "a fact")
    assert second["error"].endswith("RuntimeError: broken")
    assert "slot" not in json.loads(written("supervisor").splitlines()[0])


def test_it_is_text_on_a_terminal_or_where_it_is_asked_for_and_json_where_that_is() -> None:
    for text in (written("demo-decode-0#7", "auto", Terminal()), written("demo-decode-0#7", "text")):
        assert "INFO    demo-decode-0#7 request r-1: went\non" in text
    assert written("demo-decode-0#7", "json", Terminal()).startswith('{"at":')


def test_people_read_the_same_from_both_and_other_programs_lines_as_they_are() -> None:
    plain = written("demo-decode-0#7", "text").splitlines()
    rendered = "\n".join(logs.as_text(line) for line in written("demo-decode-0#7").splitlines()).splitlines()
    assert [line.partition(" ")[2] for line in rendered] == [line.partition(" ")[2] for line in plain]
    for line in ('{"at": 1}', '{"at":3}', "[2026-11-22 21:00:00] INFO: Prefill batch", "", '{"at":"x"'):
        assert logs.as_text(line) == line


def test_a_level_is_changed_while_things_run_and_another_word_is_refused() -> None:
    stream = io.StringIO()
    logs.start("demo-decode-0#7", "info", "json", stream)
    logs.set_level("debug")
    LOG.debug("heard")
    assert "heard" in stream.getvalue()
    with pytest.raises(ValueError, match="'loud' is no level; there are debug, info, warning, error"):
        logs.set_level("loud")


def test_a_url_is_shown_without_the_password_in_it() -> None:
    assert shown(["nats://me:secret@there:4222", "tls://there", "me:p@there:1"]) == (
        "nats://there:4222, tls://there, there:1"
    )


def test_a_log_that_grows_while_it_is_written_goes_on_as_a_new_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert not state.cut(log, 100)
    with log.open("ab", buffering=0) as writer:
        for turn in range(8):
            writer.write(b"".join(b"%d line %03d\n" % (turn, number) for number in range(50)))
            assert state.cut(log, 300)
        writer.write(b"last\n")
    assert log.read_bytes() == b"last\n"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["log", *(f"log.{number}" for number in range(1, state.LOGS_KEPT + 1))]
    newest = (tmp_path / "log.1").read_bytes()
    assert newest.startswith(b"7 line 0")
    assert newest.endswith(b"7 line 049\n")
    assert len(newest) <= 300
