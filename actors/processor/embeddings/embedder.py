"""Parts of requests for embeddings onto encoders: chosen, asked, and asked for elsewhere when one dies or is silent.

A part is idempotent: it goes to another encoder whenever the one that has it is gone, refuses, or shows no progress
while another is ready; what an earlier attempt still sends is dropped. A request ends when all its parts are there, at
its deadline, or with an error that no other encoder could mend. No request has more than a few parts out for each
encoder, so that a large one does not keep small ones waiting.
"""

import asyncio
import logging
import random
from functools import partial
from typing import Final

from actors.processor.asks import Asks
from actors.processor.embeddings.intake import Asked
from actors.processor.embeddings.request import ENVELOPE, Embedding, Part, Sink
from actors.processor.line import Line
from actors.processor.meter import Meter
from actors.processor.refusal import RefusalError
from actors.processor.router import choose
from actors.processor.view import Seat, View
from messages import codec
from messages.bus import Bus, NobodyThereError, ServiceError, SilentError
from messages.config import Limits
from messages.frames import Finish, Item
from messages.ids import short
from messages.lifecycle import Control
from messages.subjects import Subjects
from messages.submit import Done, Error
from messages.work import Encode

log = logging.getLogger("troupe.embed")

BUSY: Final = frozenset({409, 429, 503})
"""Codes that mean "ask another"; never a fault of the encoder."""
CRASHES: Final = 3
"""Encoders that may fail on one part before the part is taken for the cause."""
OUT_EACH: Final = 4
"""Parts of one request that may be out for each encoder that is ready."""
SILENT: Final = 5.0
"""Seconds without a step of an encoder after which what it has goes to another one."""
SILENT_A_TOKEN: Final = 0.01
"""Seconds more for each token of a part: 100 tokens/s is slow even for a CPU."""
LOOK: Final = 1.0
AVOID: Final = 1.0
"""Seconds for which a part is not given to an encoder that has just not done it: it looks idle, and would draw it."""


class Embedder:
    """All requests for embeddings of one processor. `chance` is for tests that want the same choices each time."""

    def __init__(
        self,
        *,
        bus: Bus,
        view: View,
        asks: Asks,
        subjects: Subjects,
        alias: str,
        incarnation: str,
        limits: Limits,
        meter: Meter,
        chance: random.Random | None = None,
    ) -> None:
        self._bus = bus
        self._view = view
        self._asks = asks
        self._subjects = subjects
        self._alias = alias
        self._incarnation = incarnation
        self._limits = limits
        self._meter = meter
        self._chance = chance or random.Random()
        self._loop = asyncio.get_running_loop()
        self._requests: dict[str, Embedding] = {}
        self._parts: dict[str, Part] = {}
        self._still: dict[str, int] = {}
        self._looking: asyncio.TimerHandle | None = None
        self.waiting: dict[str, Embedding] = {}
        self.line = Line(view, self, limits, "encoder")
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, request: str) -> Embedding | None:
        """Find a request by its id."""
        return self._requests.get(request)

    # In and out.

    def begin(self, asked: Asked, sink: Sink) -> Embedding:
        """Accept a request: from here on it gets its last word. Raises RefusalError 413, 429 or 503."""
        if (longest := max(map(len, asked.inputs)) + ENVELOPE) > self._bus.max_payload:
            raise RefusalError(413, f"one input makes a message of {longest} bytes; NATS takes {self._bus.max_payload}")
        trail = self._meter.trail(asked.id, "embed", sum(map(len, asked.inputs)) // 4)
        request = Embedding(asked, sink, self._loop.time(), trail)
        request.cut(len(self._view.by_role("encoder", self._loop.time())), self._bus.max_payload)
        self.line.admit(request)
        if not request.out:
            trail.note("queued", why="no encoder can take it now" if self._view.open else "the gate is closed")
        self._meter.admitted(trail)
        self._requests[request.id] = request
        self.empty.clear()
        request.timer = self._loop.call_at(request.deadline, self._too_late, request)
        sink.accepted(request)
        return request

    def cancel(self, request: str) -> None:
        """The client wants no more."""
        if (found := self._requests.get(request)) is not None:
            self._end(found, found.error(499, "cancelled by the client"))

    def abort(self) -> None:
        """End what is left, each with its error."""
        for request in list(self._requests.values()):
            self._end(request, request.error(503, "this processor was stopped", self._limits.retry_after))

    def _too_late(self, request: Embedding) -> None:
        self._end(request, request.error(408, f"the deadline of {request.asked.ttl:g} s has passed"))

    def _end(self, request: Embedding, last: Done | Error) -> None:
        if request.over:
            return
        request.last = last
        if request.timer is not None:
            request.timer.cancel()
        for part in list(request.out.values()):
            self._withdraw(part)
        request.pending.clear()
        self.waiting.pop(request.id, None)
        self.line.over(request)
        del self._requests[request.id]
        if not self._requests:
            self.empty.set()
        request.trail.over(last)
        request.sink.ended(request)
        self.retry()

    # Placing.

    def place(self, request: Embedding) -> None:
        """Give a request's parts to encoders; what nobody can take waits for a change."""
        if not self.place_now(request):
            self.waiting[request.id] = request

    def place_now(self, request: Embedding) -> bool:
        """Give a new request's parts to encoders, unless others wait before it; say whether any was taken."""
        return not self.waiting and self._feed(request)

    def retry(self) -> None:
        """Something has changed: try those who wait, first come first."""
        for request in list(self.waiting.values()):
            del self.waiting[request.id]
            if not self._feed(request):
                self.waiting[request.id] = request

    def _feed(self, request: Embedding) -> bool:
        """Give out as many parts as may be; return whether any is out: as those end, the rest follow."""
        now = self._loop.time()
        seats = self._view.by_role("encoder", now)
        awake = [seat for seat in seats if self._still.get(seat.incarnation) != _steps(seat)] or seats
        while request.pending and len(request.out) < OUT_EACH * max(1, len(seats)):
            part = request.pending[0]
            taking = [seat for seat in awake if part.refused.get(seat.incarnation, 0.0) <= now]
            seat = choose(b"", taking, {}, self._chance)
            if seat is None:
                break
            request.pending.popleft()
            self._send(part, seat)
        return bool(request.out)

    def _send(self, part: Part, seat: Seat) -> None:
        request = part.request
        part.seat, part.accepted, part.got = seat, False, bytearray()
        part.progress, part.steps = self._loop.time(), _steps(seat)
        request.out[part.key] = part
        self._parts[part.key] = part
        seat.own += 1
        work = Encode(
            request=part.key,
            attempt=part.attempt,
            out=self._incarnation,
            prompt=b"".join(part.inputs),
            lengths=[len(tokens) // 4 for tokens in part.inputs],
            ttl=max(request.deadline - self._loop.time(), 0.001),
            generation=seat.registration.generation,
            dimensions=request.asked.dimensions,
        )
        subject = self._subjects.work(self._alias, "encoder", seat.registration.slot)
        self._asks.ask(subject, codec.to_msgpack(work), partial(self._answered, part, part.attempt, seat))
        request.trail.routed((str(seat),), part.attempt)
        if self._looking is None:
            self._looking = self._loop.call_later(LOOK, self._look)

    def _answered(self, part: Part, attempt: int, seat: Seat, outcome: bytes | Exception) -> None:
        if part.attempt != attempt or part.seat is not seat:
            if isinstance(outcome, SilentError):
                self._abort(part.key, attempt, seat)
            return
        if isinstance(outcome, bytes):
            part.accepted = True
        elif isinstance(outcome, ServiceError) and outcome.code not in BUSY:
            where = short(seat.registration.slot, seat.registration.generation)
            self._release(part)
            self._end(part.request, part.request.error(outcome.code, f"{where}: {outcome.message}"))
        else:
            if isinstance(outcome, NobodyThereError | ServiceError):
                self._release(part)
            self._elsewhere(part, f"does not take it: {outcome}", fault=False)

    # What comes back.

    def receive(self, sender: str, items: list[Item]) -> None:
        """Take in a frame."""
        for item in items:
            self._received(sender, item)

    def _received(self, sender: str, item: Item) -> None:
        """Take in what one part got."""
        part = self._parts.get(item.request)
        if part is None or part.attempt != item.attempt or part.seat is None or part.seat.incarnation != sender:
            return
        part.accepted = True
        if 4 * item.position != len(part.got):
            self._elsewhere(part, "sends vectors with a gap")
            return
        part.got += item.tokens
        part.progress = self._loop.time()
        if item.finish is not None:
            self._finished(part, part.seat, item.finish)

    def _finished(self, part: Part, seat: Seat, finish: Finish) -> None:
        request = part.request
        where = short(seat.registration.slot, seat.registration.generation)
        self._release(part)
        if finish.reason == "encoded" and part.dimensions == (request.asked.dimensions or part.dimensions) > 0:
            if any(other.dimensions != part.dimensions for other in request.parts if other.got and other.seat is None):
                self._end(request, request.error(500, f"{where}: vectors of {part.dimensions} numbers, others differ"))
                return
            if not request.pending and not request.out:
                self._end(request, request.done())
                return
            self.retry()
            if request.pending:
                self._go_on(request)
            return
        part.got = bytearray()
        if finish.reason == "error" and finish.code < 500 and finish.code not in BUSY:
            self._end(request, request.error(finish.code, f"{where}: {finish.message}"))
        elif finish.reason == "error" and finish.code in BUSY:
            self._elsewhere(part, f"is busy: {finish.message}", seat, fault=False)
        else:
            self._crashed(part, f"{where}: {finish.message or finish.reason}", seat)

    # Going on elsewhere.

    def lost(self, seat: Seat) -> None:
        """A seat's life is over: what it had of ours goes to others."""
        where = short(seat.registration.slot, seat.registration.generation)
        self._still.pop(seat.incarnation, None)
        for part in [part for part in self._parts.values() if part.seat is seat]:
            accepted = part.accepted
            self._release(part)
            if accepted:
                self._crashed(part, f"{where} died", seat)
            else:
                self._elsewhere(part, f"{where} died", seat)

    def doubted(self, seat: Seat) -> None:
        """A seat is suspected to hang: what it has of ours goes to others, if there are any."""
        if self._view.by_role("encoder", self._loop.time()):
            for part in [part for part in self._parts.values() if part.seat is seat]:
                self._elsewhere(part, seat.suspect)

    def _crashed(self, part: Part, why: str, seat: Seat) -> None:
        part.crashes += 1
        if part.crashes >= CRASHES:
            request = part.request
            self._end(request, request.error(500, f"{why}; {part.crashes} encoders have failed on this request"))
        else:
            self._elsewhere(part, why, seat)

    def _elsewhere(self, part: Part, why: str, seat: Seat | None = None, *, fault: bool = True) -> None:
        """Begin a part's next attempt; the seat that it was at is not asked again at once.

        `fault` says whether that is for a fault of its encoder, and not because that has no room.
        """
        request = part.request
        if request.over:
            return
        seat = part.seat or seat
        if part.seat is not None:
            self._withdraw(part)
        if seat is not None:
            part.refused[seat.incarnation] = self._loop.time() + AVOID
        log.info("request %s: %s; the part goes elsewhere", part.key, why)
        where = (str(seat),) if seat is not None else ()
        if fault:
            request.trail.migrated(where, why, part.attempt)
        else:
            request.trail.note("refused", where, why, part.attempt)
        part.attempt += 1
        part.got = bytearray()
        request.pending.appendleft(part)
        self._go_on(request)

    def _go_on(self, request: Embedding) -> None:
        if request.id not in self.waiting and not self._feed(request):
            self.waiting[request.id] = request

    def _look(self) -> None:
        """Once a second while parts are out: take them from encoders that show no sign of work, if others are there."""
        self._looking = self._loop.call_later(LOOK, self._look) if self._parts else None
        if not self._bus.connected:
            return
        now = self._loop.time()
        ready = self._view.by_role("encoder", now)
        for part in list(self._parts.values()):
            seat = part.seat
            if seat is None:
                continue
            if _steps(seat) != part.steps:
                part.steps, part.progress = _steps(seat), now
            silent = now - part.progress
            patience = SILENT + SILENT_A_TOKEN * part.tokens
            if (silent > patience or seat.lease <= now) and any(other is not seat for other in ready):
                # Nobody's parts go there until it takes a step: it looks idle now, and would draw them all.
                self._still[seat.incarnation] = part.steps
                self._elsewhere(part, f"no step for {silent:.1f} s")

    def _release(self, part: Part) -> None:
        if part.seat is not None:
            seat, part.seat = part.seat, None
            del part.request.out[part.key]
            del self._parts[part.key]
            self._view.freed(seat)

    def _withdraw(self, part: Part) -> None:
        seat = part.seat
        if seat is not None:
            self._release(part)
            self._abort(part.key, part.attempt, seat)

    def _abort(self, key: str, attempt: int, seat: Seat) -> None:
        """Tell an encoder to stop; one that does not hear it does work that nobody wants, and no harm."""
        asked = Control(request=key, attempt=attempt, generation=seat.registration.generation, out=self._incarnation)
        subject = self._subjects.control(seat.registration.slot, "abort")
        self._asks.ask(subject, codec.to_json(asked), lambda outcome: None)


def _steps(seat: Seat) -> int:
    """The steps that an encoder has last told of."""
    return seat.beat.steps if seat.beat is not None else 0
