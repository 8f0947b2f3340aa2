"""The door of clients on NATS: requests by subject, answers to the reply inbox in the form in which they asked."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from actors.processor import explain, kinds
from actors.processor.holding import Holding
from actors.processor.journal import Outcome
from actors.processor.post import Letter, Post
from actors.processor.refusal import RefusalError
from actors.processor.service import Owner, Service
from messages import codec
from messages.bus import QUEUE, Bus
from messages.subjects import Subjects, last_token
from messages.submit import Accepted, Delta, Error
from messages.submit import Asked as Body

log = logging.getLogger("troupe.door")

WARN_SECONDS: Final = 10.0


class Client:
    """Where one request's answers go: a sink, and a mailbox in which deltas pile up while the post is busy."""

    __slots__ = ("_encode", "_job", "_owner", "_post", "_text", "posted", "reply")

    def __init__(self, post: Post, reply: str, encode: Callable[[object], bytes], owner: str, text: bool) -> None:
        self._post = post
        self._encode = encode
        self._owner = owner
        self._text = text
        self._job: Outcome | None = None
        self.reply = reply
        self.posted = False

    def accepted(self, job: Outcome) -> None:
        """Say that the job is ours."""
        self._job = job
        self._post.send(self.reply, self._encode(Accepted(id=job.id, attempt=job.attempt, owner=self._owner)))

    def grown(self, job: Outcome) -> None:
        """Send what has come when the post gets to it."""
        self._post.collect(self)

    def ended(self, job: Outcome) -> None:
        """Send what is left, then the last word."""
        self._job = job
        self._post.collect(self)

    def left(self, job: Outcome) -> None:
        """Say nothing more."""
        self._job = None

    def letters(self) -> Iterator[Letter]:
        """Give what has piled up as one delta, and the last word if there is one."""
        job = self._job
        if job is None:
            return
        while (piece := job.take()) is not None:
            if not (piece.token_ids or piece.text or piece.reasoning or piece.tool_calls):
                continue
            delta = Delta(
                id=job.id,
                attempt=job.attempt,
                position=piece.position,
                token_ids=piece.token_ids,
                text=piece.text if self._text else "",
                reasoning=piece.reasoning,
                tool_calls=piece.tool_calls,
                index=piece.index,
                logprobs=piece.logprobs,
            )
            yield self.reply, self._encode(delta), "", None
        if job.last is not None:
            self._job = None
            yield self.reply, self._encode(job.last), "", None

    def undeliverable(self, why: str) -> None:
        """Take note that NATS did not take an answer; the client will ask for what it misses."""
        log.warning("an answer to %s was not sent: %s", self.reply, why)


class NatsDoor:
    """Takes requests from the queue group of the model's processors; `unanswerable` counts those without an inbox."""

    def __init__(self, bus: Bus, subjects: Subjects, service: Service, incarnation: str, own: Owner) -> None:
        self._bus = bus
        self._subjects = subjects
        self._service = service
        self._incarnation = incarnation
        self._own = own
        self._limit = service.model.limits.body_bytes
        self._holding = Holding("NATS", service.model.limits)
        self._submits: Subscription | None = None
        self._warn_at = 0.0
        self.unanswerable = 0
        self._preparing: dict[str, str] = {}

    async def open(self) -> None:
        """Subscribe: from here on requests come."""
        await self._bus.subscribe(self._subjects.cancels, self._on_cancel)
        self._submits = await self._bus.subscribe(
            self._subjects.submits(self._service.model.slug), self._on_submit, queue=QUEUE
        )

    async def shut(self) -> None:
        """Take nothing new; what has been delivered is still taken in."""
        if self._submits is not None:
            await self._submits.drain()  # type: ignore[no-untyped-call]
            self._submits = None

    async def _on_cancel(self, msg: Msg) -> None:
        self._service.cancel(last_token(msg.subject))

    async def _on_submit(self, msg: Msg) -> None:
        if not self._subjects.may_answer(msg.reply):
            self._cannot_answer(msg)
            return
        await self._take(msg)

    async def _take(self, msg: Msg) -> None:
        """Take in a request whose sender can be answered."""
        form = (msg.headers or {}).get("content-type", codec.JSON) if msg.headers else codec.JSON
        encode = codec.to_msgpack if form == codec.MSGPACK else codec.to_json
        body: Body | None = None
        try:
            kind = last_token(msg.subject)
            kinds.check_subject(self._service.model, kind)
            body = self._service.intake.read(msg.data, kind, form)
            client = self._client(msg, encode, body)
            if self._preparing.get(body.id) == msg.reply:
                return
            if (known := self._service.reserve(body)) is not None:
                self._asked_again(known, client)
            elif self._service.intake.is_long(body):
                holding = self._hold(body, len(msg.data))
                self._own(partial(self._prepare_later, body, client, holding))
            else:
                try:
                    self._service.begin(body, self._service.intake.prepare(body), client)
                finally:
                    self._service.release(body)
        except RefusalError as refusal:
            self._refuse(msg.reply, encode, body.id if body is not None else self._id_in(msg, form), refusal)
        except Exception:
            log.exception("a request could not be handled")
            known_id = body.id if body is not None else ""
            self._refuse(msg.reply, encode, known_id, RefusalError(500, "the processor failed on this request"))

    def _cannot_answer(self, msg: Msg) -> None:
        """Count a request whose sender cannot be told anything, and say so now and then."""
        self.unanswerable += 1
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            reply = f"the reply subject {msg.reply[:64]!r}" if msg.reply else "no reply subject"
            log.warning("a request with %s: nobody could be answered (%d by now)", reply, self.unanswerable)

    def _client(self, msg: Msg, encode: Callable[[object], bytes], body: Body) -> Client:
        return Client(self._service.post, msg.reply, encode, self._incarnation, not msg.subject.endswith("generate"))

    def _asked_again(self, job: Outcome, client: Client) -> None:
        """The same client asking again has not heard that it is accepted; any other has taken a used id."""
        sink = job.sink
        if isinstance(sink, Client) and sink.reply == client.reply:
            sink.accepted(job)
            return
        raise RefusalError(409, f"request id {job.id} is under way here, at attempt {job.attempt}", param="id")

    def _hold(self, body: Body, size: int) -> ExitStack:
        """Count a body that is prepared later, and was reserved. Raises RefusalError 429 where there are too many."""
        holding = ExitStack()
        try:
            holding.enter_context(self._holding.hold(size))
        except RefusalError:
            self._service.release(body)
            raise
        return holding

    async def _prepare_later(self, body: Body, client: Client, holding: ExitStack) -> None:
        self._preparing[body.id] = client.reply
        try:
            self._service.begin(body, await self._service.prepare(body), client)
        except RefusalError as refusal:
            self._refuse(client.reply, client._encode, body.id, refusal)
        except Exception:
            log.exception("a request could not be handled")
            failure = RefusalError(500, "the processor failed on this request")
            self._refuse(client.reply, client._encode, body.id, failure)
        finally:
            del self._preparing[body.id]
            self._service.release(body)
            holding.close()

    def _refuse(self, reply: str, encode: Callable[[object], bytes], request: str, refusal: RefusalError) -> None:
        if reply:
            error = Error(
                id=request,
                code=refusal.code,
                message=refusal.message,
                param=refusal.param,
                retry_after=refusal.retry_after,
            )
            self._service.post.send(reply, encode(error))
        self._service.meter.refused(refusal.code)

    def _id_in(self, msg: Msg, form: str) -> str:
        if len(msg.data) > self._limit:
            return ""
        decoder = codec.msgpack_decoder if form == codec.MSGPACK else codec.json_decoder
        return explain.id_in(msg.data, decoder(dict).decode)
