"""An embedding model's processor put together: the parts that every processor has, with encoders behind them."""

import anyio
import anyio.to_thread

from actors.processor.embeddings.embedder import Embedder
from actors.processor.embeddings.intake import Asked, EmbedIntake
from actors.processor.embeddings.request import Embedding, Sink
from actors.processor.inbox import Inbox
from actors.processor.intake import Intake
from actors.processor.refusal import RefusalError
from actors.processor.service import LONG_WAITING, Owner, Service
from actors.processor.view import Seat
from messages.bus import Bus
from messages.config import Model, Watch
from messages.embed import Embed
from messages.subjects import Subjects


class EmbedService(Service):
    """One processor's work for an embedding model; journal and dispatcher, for what generates, stay empty."""

    def __init__(
        self,
        *,
        bus: Bus,
        subjects: Subjects,
        model: Model,
        incarnation: str,
        intake: Intake,
        embed_intake: EmbedIntake,
        own: Owner,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(
            bus=bus, subjects=subjects, model=model, incarnation=incarnation, intake=intake, own=own, watch=watch
        )
        self.embed_intake = embed_intake
        self.embedder = Embedder(
            bus=bus,
            view=self.view,
            asks=self.asks,
            subjects=subjects,
            alias=model.slug,
            incarnation=incarnation,
            limits=model.limits,
            meter=self.meter,
        )
        self.line = self.embedder.line
        self.inbox = Inbox(bus, self.post, subjects, incarnation, self.embedder.receive)

    @property
    def in_flight(self) -> int:
        """How many requests have not had their last word."""
        return len(self.embedder)

    def book(self, body: Embed) -> Embedding | None:
        """Check who is asking and reserve the id; the caller goes on with `inputs_of` and `embed`, then `unbook`.

        Returns the request that has this id already; then nothing is reserved. Raises RefusalError 400, 404, 409, 429
        or 503.
        """
        self.intake.name(body)
        again = self.model.limits.retry_after
        if self.draining:
            raise RefusalError(503, "this processor is draining", retry_after=again)
        if body.id in self._preparing:
            raise RefusalError(409, f"request {body.id} is being prepared already", param="id")
        if (known := self.embedder.get(body.id)) is not None:
            return known
        limit = self.model.limits.in_flight
        if len(self.embedder) + len(self._preparing) >= limit:
            raise RefusalError(429, f"{limit} requests are in flight here, and no more may be", retry_after=again)
        self._preparing.add(body.id)
        self.meter.arrived(body.id)
        self._prepared.clear()
        return None

    def unbook(self, body: Embed) -> None:
        """Give a reserved id back."""
        self._preparing.discard(body.id)
        self.meter.forget(body.id)
        self._cancelled.discard(body.id)
        if not self._preparing:
            self._prepared.set()

    async def inputs_of(self, body: Embed) -> Asked:
        """Make the inputs, off the loop if they are long. Raises RefusalError 400, 413 or 429."""
        if not self.embed_intake.is_long(body):
            return self.embed_intake.prepare(body)
        if self._long >= LONG_WAITING:
            again = self.model.limits.retry_after
            raise RefusalError(429, f"{self._long} long requests wait to be tokenised already", retry_after=again)
        self._long += 1
        try:
            return await anyio.to_thread.run_sync(self.embed_intake.prepare, body, limiter=self._threads)
        finally:
            self._long -= 1

    def embed(self, asked: Asked, sink: Sink) -> Embedding:
        """Accept a request: from here on it is ours and gets its last word. Raises RefusalError."""
        if asked.id in self._cancelled:
            raise RefusalError(499, "cancelled by the client")
        return self.embedder.begin(asked, sink)

    def has(self, request: str) -> bool:
        """Whether a request is ours and has not had its last word."""
        return request in self._preparing or self.embedder.get(request) is not None

    def cancel(self, request: str) -> None:
        """The client wants no more."""
        if request in self._preparing:
            self._cancelled.add(request)
        else:
            self.embedder.cancel(request)

    def _on_lost(self, seat: Seat) -> None:
        self.embedder.lost(seat)
        self.inbox.forget(seat.incarnation)

    def _on_doubt(self, seat: Seat) -> None:
        if seat.suspect:
            self.embedder.doubted(seat)

    def _on_change(self) -> None:
        super()._on_change()
        for seat in self.view.seats.values():
            self.embed_intake.dimensions = seat.registration.dimensions or self.embed_intake.dimensions
        self.embedder.retry()

    async def drain(self) -> None:
        """Finish what is there; the doors take nothing new any more."""
        self.draining = True
        while self._preparing or len(self.embedder):
            await (self._prepared if self._preparing else self.embedder.empty).wait()
        self.inbox.acknowledge()
        await self.post.flush()

    async def abort(self) -> None:
        """End what is left, each with its error."""
        self.embedder.abort()
        await self.post.flush()
