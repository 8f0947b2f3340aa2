"""How every process logs: one line a fact, with who says it; for people as text, for machines as lines of JSON.

It goes to stderr, which the spawner sends to the slot's log. What an engine's own libraries write goes there as it is.
Prompts, answers and secrets are logged at no level. A line of JSON:

    {"at":"2026-11-22T21:30:00.123Z","level":"info","slot":"demo-decode-0","generation":7,"text":"ready after 0.4 s"}

`who` (`supervisor`) stands in place of, or beside, the slot that a line is about. `request` is there where it is about
one: what is logged as `"request %s ..."` is. `error` has a traceback; `logger` says which part of the program it is.
"""

import logging
import sys
import time
from typing import Final, Literal, TextIO, get_args

import msgspec
from msgspec import Struct

from messages.ids import parse_slot, short

Format = Literal["auto", "text", "json"]
Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

ROOT: Final = "troupe"


class Line(Struct, kw_only=True, omit_defaults=True):
    """One line of a log; `at` is UTC."""

    at: str
    level: str
    who: str = ""
    slot: str = ""
    generation: int = 0
    request: str = ""
    text: str
    logger: str = ""
    error: str = ""


_DECODER: Final = msgspec.json.Decoder(Line)
_ENCODER: Final = msgspec.json.Encoder()


class AsText(logging.Formatter):
    """Lines for people."""

    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {who} %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime


class AsJson(logging.Formatter):
    """Lines for machines: one JSON object each, whatever the message holds."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self.converter = time.gmtime
        self._who, self._slot, self._generation = _parts(who)

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; `slot` and `generation` may be given as `extra`."""
        line = Line(
            at=f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            level=record.levelname.lower(),
            who=self._who,
            slot=getattr(record, "slot", self._slot),
            generation=getattr(record, "generation", self._generation),
            request=_request(record),
            text=record.getMessage(),
            logger=record.name,
            error=self.formatException(record.exc_info) if record.exc_info else "",
        )
        return _ENCODER.encode(line).decode()


def start(who: str, level: str = "info", how: Format = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for this process; `who` (`demo-decode-0#7`, `supervisor`) stands in each line.

    `how` auto is text where the stream (stderr) is a terminal, and JSON where it is not.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(who, how, stream))
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def formatter(who: str, how: Format, stream: TextIO | None = None) -> logging.Formatter:
    """Make what writes the lines; auto without a stream is JSON, as for a file."""
    text = how == "text" or (how == "auto" and stream is not None and stream.isatty())
    return AsText(who) if text else AsJson(who)


def set_level(level: str) -> None:
    """Log from this level on, from now on. Raises ValueError for what is none."""
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no level; there are {', '.join(LEVELS)}")
    logging.getLogger(ROOT).setLevel(level.upper())


def as_text(line: str) -> str:
    """Turn a line of a log into what people read; what is no line of ours stays as it is."""
    if not line.startswith('{"at":'):
        return line
    try:
        found = _DECODER.decode(line)
    except msgspec.DecodeError:
        return line
    who = found.who or (short(found.slot, found.generation) if found.generation else found.slot)
    text = f"{found.at} {found.level.upper():<7} {who} {found.text}"
    return f"{text}\n{found.error}" if found.error else text


def _request(record: logging.LogRecord) -> str:
    """The id of the request that a line is about; an engine's key for one begins with it."""
    if not str(record.msg).startswith("request %s") or not isinstance(record.args, tuple):
        return ""
    return str(record.args[0]).partition(":")[0]


def _parts(who: str) -> tuple[str, str, int]:
    """Take apart who logs: a slot's incarnation, or something else by its name."""
    slot, mark, generation = who.partition("#")
    try:
        parse_slot(slot)
    except ValueError:
        return who, "", 0
    return "", slot, int(generation) if mark and generation.isdigit() else 0
