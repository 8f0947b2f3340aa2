"""`troupe events`: what happened in a cluster, from the history that JetStream keeps, and with -f what happens."""

import asyncio
import re
import sys
import time
from argparse import ArgumentTypeError, Namespace
from typing import Final

import msgspec

from messages.bus import Bus
from messages.event_log import Told, follow
from messages.lifecycle import Event
from messages.subjects import TOPICS, Subjects
from supervisor.commands import happened
from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import check_slot, connected, folder_of, record_of
from supervisor.state import Folder

READ_SECONDS: Final = 60.0
UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
KINDS: Final = (
    *TOPICS,
    *("started", "ready", "died", "gave_up", "condemned", "draining", "stopped", "aborted", "waits", "held"),
    *("standby", "promoted", "refused", "surplus", "rolls", "rolled", "roll_done", "roll_stopped"),
    *("lapsed", "heard", "opened", "closed", "degraded", "whole", "stage"),
)
"""What --kind takes: a topic, or a word of one."""


def events(options: Namespace) -> Code:
    """Show what happened; with -f go on until Ctrl-C."""
    folder = folder_of(options)
    return asyncio.run(_events(folder, options))


def since(text: str) -> float:
    """Read a span such as 90s, 10m, 2h or 1d; a plain number is seconds."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no span of time; one is written 90s, 10m, 2h or 1d")
    return float(found[1]) * UNITS[found[2] or "s"]


class Wanted:
    """Which events are to be shown: those of a slot, of a kind, or all that is not said twice."""

    def __init__(self, slot: str | None, kinds: list[str], *, whole: bool) -> None:
        self._slot = slot
        self._kinds = kinds
        self._whole = whole

    def __call__(self, event: Event) -> bool:
        """Whether this one is."""
        if self._slot is not None and event.of != self._slot:
            return False
        if self._kinds:
            return event.topic in self._kinds or event.what in self._kinds
        return self._whole or event.topic != "actor"

    @property
    def all(self) -> bool:
        """Whether nothing that matters is left out."""
        return self._slot is None and not self._kinds


class Printer:
    """Shows events as they are told: of the history the last ones, then each."""

    def __init__(self, wanted: Wanted, last: int | None, *, json: bool) -> None:
        self._wanted = wanted
        self._last = last
        self._json = json
        self.begun = asyncio.Event()

    def take(self, told: list[Told], anew: bool) -> None:
        """Show those that are wanted."""
        if anew and self.begun.is_set():
            sys.stderr.write("troupe events: NATS has lost its store; the history begins anew\n")
        shown = [one for one in told if self._wanted(one.event)]
        if not self.begun.is_set() and self._last is not None:
            shown = shown[len(shown) - min(self._last, len(shown)) :]
        now = time.time()
        for one in shown:
            # Compact: one that another program published may have line breaks in it.
            text = msgspec.json.format(one.data, indent=-1).decode() if self._json else happened.line(one.event, now)
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
        self.begun.set()


async def _events(folder: Folder, options: Namespace) -> Code:
    record = record_of(folder)
    if options.slot is not None:
        check_slot(folder, record, options.slot)
    wanted = Wanted(options.slot, options.kind, whole=options.json)
    last = options.lines if options.lines is not None else (50 if options.since is None else None)
    printer = Printer(wanted, last, json=options.json)
    began = None if options.since is None else time.time() - options.since
    async with connected(record) as bus:
        _tell_losses(bus)
        # Most of what happens at a start are the actors' own words, which people are not shown.
        newest = 8 * last if last and began is None and wanted.all else 0
        stream = Subjects(record.cluster).event_stream
        following = asyncio.ensure_future(follow(bus, stream, printer.take, newest=newest, since=began))
        begun = asyncio.ensure_future(printer.begun.wait())
        try:
            await asyncio.wait({following, begun}, timeout=READ_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done() and not following.done():
                raise CommandError(
                    Code.FAILED, f"the history (stream {stream}) could not be read in {READ_SECONDS:g} s"
                )
            if options.follow or following.done():
                await following
        finally:
            for task in (following, begun):
                task.cancel()
            await asyncio.gather(following, begun, return_exceptions=True)
    return Code.OK


def kind(text: str) -> str:
    """Check what --kind is given."""
    if text not in KINDS:
        raise ArgumentTypeError(f"there is no kind {text!r}; there are {', '.join(KINDS)}")
    return text


def _tell_losses(bus: Bus) -> None:
    """Say on stderr while NATS is away: what is shown is not all then."""
    bus.on_lost(lambda: _note("NATS is away; waiting for it"))
    bus.on_back(lambda: _note("NATS is back"))


def _note(text: str) -> None:
    sys.stderr.write(f"troupe events: {text}\n")
    sys.stderr.flush()
