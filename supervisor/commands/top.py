"""`troupe top`: slots, gates and what happens, live in a terminal."""

import asyncio
import curses
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Coroutine
from typing import Any, Final

from supervisor.commands.codes import Code, CommandError
from supervisor.commands.common import folder_of, quiet, record_of
from supervisor.state import Folder
from supervisor.top.screen import draw
from supervisor.top.session import Session
from supervisor.top.terminal import Terminal, opened
from supervisor.top.view import Known, Order, Quit, ShowLog, Ui, shown

CLOCK: Final = 1.0
FRAME: Final = 0.04
"""Seconds between two paintings at least: a burst of news is one picture."""


def top(options: Namespace) -> Code:
    """Watch a cluster until q is pressed."""
    folder = folder_of(options)
    record_of(folder)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError(Code.USAGE, "this needs a terminal; `troupe status` and `troupe events -f` do not")
    quiet()
    try:
        with opened() as terminal:
            return asyncio.run(Watch(folder, terminal).run())
    except curses.error as error:
        kind = os.environ.get("TERM", "")
        raise CommandError(Code.FAILED, f"this terminal (TERM={kind!r}) cannot be used: {error}") from None


class Watch:
    """One sitting: what is known, where the person is, and the terminal between them."""

    def __init__(self, folder: Folder, terminal: Terminal) -> None:
        self._known = Known()
        self._ui = Ui()
        self._terminal = terminal
        self._session = Session(folder, self._known, self._changed)
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None

    async def run(self) -> Code:
        """Paint whenever there is something new, until it is enough."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        self._terminal.listen(self._on_key, self._changed)
        self._own(self._session.run())
        self._own(self._paint())
        await self._over.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=CLOCK)
        if self._failed is not None:
            raise self._failed
        return Code.OK

    async def _paint(self) -> None:
        while True:
            self._news.clear()
            slots = shown(self._known, self._ui.filter)
            if slots and self._ui.chosen not in [slot.slot for slot in slots]:
                self._ui.chosen = slots[0].slot
            width, height = self._terminal.size
            self._terminal.paint(draw(self._known, self._ui, width, height, time.monotonic(), time.time()))
            await asyncio.sleep(FRAME)
            try:
                async with asyncio.timeout(CLOCK):
                    await self._news.wait()
            except TimeoutError:
                if self._ui.below == "log":
                    await self._session.read_log(self._ui.chosen)

    def _changed(self) -> None:
        self._news.set()

    def _on_key(self, key: str) -> None:
        match self._ui.press(key, self._known, time.monotonic()):
            case Quit():
                self._over.set()
            case ShowLog(slot):
                self._own(self._session.read_log(slot))
            case Order() as order:
                self._own(self._carry_out(order))
        self._changed()

    async def _carry_out(self, order: Order) -> None:
        said = await self._session.order(order)
        self._ui.say(said, time.monotonic())
        self._changed()

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run in the background; a failure there ends the sitting, told and not swallowed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = error
            self._over.set()
