"""Short questions over NATS, each answered by a call-back: hundreds under way cost one subscription and one timer.

A question that is not answered in time fails. While NATS is away none does: when it is back, those that are open are
asked again, because nobody can know whether they arrived. So whoever is asked must bear being asked twice. What comes
back to the first time of asking counts no more: it may say that nobody was there, and the second time be heard.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from actors.processor.post import Post
from messages.bus import Bus, NobodyThereError, ServiceError, SilentError
from messages.subjects import last_token

log = logging.getLogger("troupe.asks")

ANSWER_SECONDS: Final = 1.0

Then = Callable[[bytes | Exception], None]
"""Called once: with the answer, or with NobodyThereError, SilentError or ServiceError."""


class Asks:
    """All questions of one processor."""

    def __init__(self, bus: Bus, post: Post, *, seconds: float = ANSWER_SECONDS) -> None:
        self._bus = bus
        self._post = post
        self._seconds = seconds
        self._inbox = bus.inbox()
        self._count = 0
        self._open: dict[str, tuple[str, bytes, Then, bool]] = {}
        self._due: deque[tuple[float, str]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Listen for answers."""
        await self._bus.take_at_once(f"{self._inbox}.*", self._on_answer)
        self._bus.on_back(self._ask_again)

    def ask(self, subject: str, payload: bytes, then: Then) -> None:
        """Ask, and call `then` with what comes of it."""
        self._ask(subject, payload, then, again=False)
        if self._timer is None:
            self._set_timer()

    def _ask(self, subject: str, payload: bytes, then: Then, *, again: bool) -> None:
        self._count += 1
        key = str(self._count)
        self._open[key] = (subject, payload, then, again)
        self._post.send(subject, payload, reply=f"{self._inbox}.{key}")
        self._due.append((asyncio.get_running_loop().time() + self._seconds, key))

    def _on_answer(self, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        asked = self._open.pop(last_token(subject), None)
        if asked is None:
            return
        subject, _, then, again = asked
        if headers is None:
            self._tell(then, data)
        elif headers.get("Status") == "503" and again:
            self._tell(then, SilentError(f"nobody listens on {subject} now, who may have heard it before NATS went"))
        elif headers.get("Status") == "503":
            self._tell(then, NobodyThereError(f"nobody listens on {subject}"))
        elif code := headers.get("Nats-Service-Error-Code"):
            self._tell(then, ServiceError(int(code), headers.get("Nats-Service-Error", "")))
        else:
            self._tell(then, data)

    def _tell(self, then: Then, outcome: bytes | Exception) -> None:
        try:
            then(outcome)
        except Exception:
            log.exception("an answer could not be handled")

    def _set_timer(self) -> None:
        while self._due and self._due[0][1] not in self._open:
            self._due.popleft()
        self._timer = asyncio.get_running_loop().call_at(self._due[0][0], self._on_timer) if self._due else None

    def _on_timer(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        if not self._bus.connected:
            return
        while self._due and self._due[0][0] <= now:
            if (asked := self._open.pop(self._due.popleft()[1], None)) is not None:
                self._tell(asked[2], SilentError(f"no answer on {asked[0]} within {self._seconds:g} s"))
        if self._timer is None:
            self._set_timer()

    def _ask_again(self) -> None:
        asked, self._open = self._open, {}
        self._due.clear()
        for subject, payload, then, _ in asked.values():
            self._ask(subject, payload, then, again=True)
        if self._timer is not None:
            self._timer.cancel()
        self._set_timer()
