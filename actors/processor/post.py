"""What the processor sends over NATS, in one line that one task publishes: so that sending never has to wait.

Letters go out in the order in which they were given. A mailbox stands in the line once however much piles up in it,
and is emptied when its turn comes: what came in the meantime leaves as one message.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from messages.bus import Bus, BusError, ServiceError

log = logging.getLogger("troupe.post")

Letter = tuple[str, bytes, str, dict[str, str] | None]
"""Subject, payload, reply subject, headers."""


class Mailbox(Protocol):
    """Somebody's outgoing messages."""

    posted: bool
    """Whether it stands in the line; the post's own note."""

    def letters(self) -> Iterator[Letter]:
        """Give what has piled up."""

    def undeliverable(self, why: str) -> None:
        """Learn that a letter was not taken."""


class Post:
    """The line. `lost` counts the letters that NATS did not take: too large, or away for longer than its buffer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._line: deque[Letter | Mailbox] = deque()
        self._wake = asyncio.Event()
        self.lost = 0

    def send(self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Put a letter in line."""
        self._line.append((subject, payload, reply, headers))
        self._wake.set()

    def collect(self, mailbox: Mailbox) -> None:
        """Put a mailbox in line, unless it stands there already."""
        if not mailbox.posted:
            mailbox.posted = True
            self._line.append(mailbox)
            self._wake.set()

    async def run(self) -> None:
        """Publish, for ever; the owner's task group runs it."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Publish what stands in line."""
        publish, line = self._bus.publish, self._line
        while line:
            entry = line.popleft()
            if isinstance(entry, tuple):
                await self._publish(entry)
                continue
            entry.posted = False
            for subject, payload, reply, headers in entry.letters():
                try:
                    await publish(subject, payload, reply=reply, headers=headers)
                except (BusError, ServiceError) as error:
                    self.lost += 1
                    entry.undeliverable(str(error))

    async def _publish(self, letter: Letter) -> None:
        subject, payload, reply, headers = letter
        try:
            await self._bus.publish(subject, payload, reply=reply, headers=headers)
        except (BusError, ServiceError) as error:
            self.lost += 1
            log.warning("not sent on %s: %s", subject, error)
