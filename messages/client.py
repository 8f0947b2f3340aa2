"""A client for Python: requests by subject, answers as they come, and no seam when a processor dies.

    async with Client("nats://127.0.0.1:4222") as troupe:
        async for delta in troupe.chat("demo", "Count from 1 to 10."):
            print(delta.text, end="")

What comes is `submit.Delta` after `submit.Delta` and, last, one `submit.Done`; a request that does not end well
raises `RequestError`. Leaving the loop early cancels the request.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bucket, Bus, BusError, NobodyThereError, ServiceError, SilentError
from messages.config import Nats
from messages.embed import Embed
from messages.gate import Gate
from messages.ids import alias_of, check_request_id, new_request_id, parse_incarnation
from messages.lifecycle import Control
from messages.subjects import Kind, Subjects, last_token
from messages.submit import (
    Accepted,
    Answer,
    Asked,
    Chat,
    Completion,
    Delta,
    Done,
    Error,
    Generate,
    Message,
    Resume,
)

if TYPE_CHECKING:
    from messages.embed_client import Embeddings

ACCEPT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 1.0
PING_SECONDS: Final = 1.0
TIMEOUT: Final = 600.0
SLACK: Final = 5.0
QUEUED: Final = 65_536


class RequestError(Exception):
    """A request that did not end well; `code` is HTTP's, `retry_after` in seconds if trying again makes sense."""

    def __init__(self, id: str, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.id = id
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Client:
    """A connection to a cluster, for any number of requests at once.

    `url` is a NATS URL, several of them, or a whole `config.Nats`; `prefix` is the cluster's name. With `wait`, a
    request that finds no processor waits for one (within its own deadline) instead of failing with a 503.
    """

    def __init__(self, url: str | list[str] | Nats, *, prefix: str = "troupe", wait: bool = False) -> None:
        self._config = url if isinstance(url, Nats) else Nats(url=url)
        self._subjects = Subjects(prefix)
        self._wait = wait
        self._bus: Bus
        self._gates: Bucket
        self._inbox = ""
        self._streams: dict[str, asyncio.Queue[Msg]] = {}
        self._aliases: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        """Connect; raises BusError if there is no server."""
        self._bus = await Bus.connect(self._config, name="client", wait=10)
        self._gates = await self._bus.bucket(self._subjects.gate_bucket)
        self._inbox = self._bus.inbox()
        await self._bus.subscribe(f"{self._inbox}.*", self._on_answer)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._bus.close()

    async def models(self) -> list[Gate]:
        """List the models there are, each with its gate."""
        return [codec.from_json(value, Gate) for value in (await self._gates.all()).values()]

    def chat(self, model: str, messages: str | list[Message] | list[dict[str, Any]], **fields: Any) -> "Answers":
        """Continue a conversation; a plain text is one turn of the user. `fields` are those of `submit.Chat`."""
        turns = [Message(role="user", content=messages)] if isinstance(messages, str) else messages
        return self._ask("chat", _made(Chat, model=model, messages=turns, **fields))

    def completion(self, model: str, prompt: str | list[int] | list[str] | list[list[int]], **fields: Any) -> "Answers":
        """Continue a text, or token ids, or several of either, answered in text.

        `fields` are those of `submit.Completion`. A delta's `index` says which choice it belongs to.
        """
        return self._ask("completion", _made(Completion, model=model, prompt=prompt, **fields))

    def generate(self, model: str, token_ids: list[int], **fields: Any) -> "Answers":
        """Continue token ids, answered in token ids alone. `fields` are those of `submit.Generate`."""
        return self._ask("generate", _made(Generate, model=model, token_ids=token_ids, **fields))

    async def embed(
        self, model: str, inputs: str | list[str] | list[int] | list[list[int]], **fields: Any
    ) -> "Embeddings":
        """Turn a text, or token ids, or several of them, into vectors. `fields` are those of `embed.Embed`."""
        from messages.embed_client import EmbedRequest

        body = _made(Embed, model=model, input=inputs, **fields)
        with contextlib.suppress(ValueError):
            body.id = check_request_id(body.id) if body.id else new_request_id()
        return await EmbedRequest(self, body).whole()

    async def _on_answer(self, msg: Msg) -> None:
        queue = self._streams.get(last_token(msg.subject))
        if queue is not None:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(msg)

    def _ask(self, kind: Kind, body: Asked) -> "Answers":
        with contextlib.suppress(ValueError):
            body.id = check_request_id(body.id) if body.id else new_request_id()
        return _Request(self, kind, body).run()

    async def _alias(self, model: str) -> str:
        """Find a model's alias by the gates; raises RequestError 404 naming the models there are."""
        if model in self._aliases:
            return self._aliases[model]
        try:
            gates = await self.models()
        except (BusError, msgspec.DecodeError):
            gates = []
        self._aliases = {gate.model: gate.alias for gate in gates}
        if model not in self._aliases and gates:
            raise RequestError("", 404, f"no model {model!r} here; there is {', '.join(sorted(self._aliases))}")
        return self._aliases.get(model) or alias_of(model)


Answers = AsyncIterator[Delta | Done]


class _Request:
    """One request, over as many processors as it takes."""

    answers: Any = Answer
    """What may come back."""

    def __init__(self, client: Client, kind: Kind, body: Asked | Embed) -> None:
        self._client = client
        self._kind = kind
        self._body = body
        self._queue: asyncio.Queue[Msg] = asyncio.Queue(QUEUED)
        self._token = body.id.replace("-", "")
        self._received: list[list[int]] = [[] for _ in range(_choices(body))]
        self._attempt = 0
        self._owner: str | None = None
        self._deadline = time.monotonic() + (body.timeout or TIMEOUT) + SLACK

    async def run(self) -> Answers:
        bus, streams = self._client._bus, self._client._streams
        if self._token in streams:
            raise RequestError(self._body.id, 409, f"request id {self._body.id} is under way in this client already")
        streams[self._token] = self._queue
        ended = False
        try:
            subject = self._client._subjects.submit(await self._client._alias(self._body.model), self._kind)
            await self._submit(subject)
            while True:
                answer = await self._next(subject)
                match answer:
                    case Accepted():
                        if answer.attempt >= self._attempt:
                            self._owner, self._attempt = answer.owner, answer.attempt
                    case Delta():
                        if await self._is_new(answer, subject):
                            yield answer
                    case Done() | Error() if 0 < answer.attempt < self._attempt:
                        continue
                    case Done() if answer.usage.completion_tokens > sum(map(len, self._received)):
                        await self._resume(subject)
                    case Done():
                        ended = True
                        yield answer
                        return
                    case Error():
                        ended = True
                        raise RequestError(answer.id, answer.code, answer.message, answer.retry_after)
        finally:
            del streams[self._token]
            if not ended:
                with contextlib.suppress(BusError):
                    await bus.publish(self._client._subjects.cancel(self._body.id))

    async def _is_new(self, delta: Delta, subject: str) -> bool:
        """Drop what an older owner still sends and what we have; ask again for what was lost on the way."""
        if delta.attempt < self._attempt or delta.index >= len(self._received):
            return False
        received = self._received[delta.index]
        if delta.position < len(received):
            return False
        if delta.position > len(received):
            await self._resume(subject)
            return False
        self._attempt = delta.attempt
        received += delta.token_ids
        return True

    async def _submit(self, subject: str) -> None:
        payload = codec.to_msgpack(self._body)
        bus = self._client._bus
        if len(payload) > bus.max_payload:
            message = f"the request takes {len(payload)} bytes, NATS takes {bus.max_payload}"
            raise RequestError(self._body.id, 413, message)
        reply = f"{self._client._inbox}.{self._token}"
        try:
            await bus.publish(subject, payload, reply=reply, headers={"content-type": codec.MSGPACK})
        except (BusError, ServiceError) as error:
            raise RequestError(self._body.id, 503, str(error)) from None

    async def _resume(self, subject: str) -> None:
        """Go on with whichever processor takes it, from what we have."""
        self._owner = None
        several = len(self._received) > 1
        self._body.resume = Resume(
            attempt=self._attempt,
            token_ids=[] if several else self._received[0],
            choices=self._received if several else None,
        )
        self._attempt += 1
        await self._submit(subject)

    async def _next(self, subject: str) -> Answer:
        """Wait for the next answer, seeing to it meanwhile that somebody still owns the request."""
        while True:
            patience = SILENCE_SECONDS if self._owner else ACCEPT_SECONDS
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise RequestError(self._body.id, 408, "no last word within the deadline")
            try:
                async with asyncio.timeout(min(patience, left)):
                    msg = await self._queue.get()
            except TimeoutError:
                await self._after_silence(subject)
                continue
            if msg.data:
                answer: Answer = codec.msgpack_decoder(self.answers).decode(msg.data)
                return answer
            await self._nobody_there(subject)

    async def _after_silence(self, subject: str) -> None:
        if not self._client._bus.connected:
            return
        if self._owner is None:
            await (self._resume(subject) if any(self._received) else self._submit(subject))
        elif not await self._is_owned() and self._queue.empty():
            await self._resume(subject)

    async def _is_owned(self) -> bool:
        """Ask the owner whether it lives and has the request: its last word may have been lost on the way."""
        assert self._owner is not None
        slot, generation = parse_incarnation(self._owner)
        ping = codec.to_json(Control(generation=generation, request=self._body.id))
        try:
            await self._client._bus.request(self._client._subjects.control(slot, "ping"), ping, timeout=PING_SECONDS)
        except (NobodyThereError, SilentError, ServiceError):
            return False
        except BusError:
            return True
        return True

    async def _nobody_there(self, subject: str) -> None:
        """Without a processor: wait for one if that was asked for, or if the request had been accepted before."""
        if not self._client._wait and self._body.resume is None:
            message = f"no processor serves {self._body.model!r}; is the cluster up? (troupe status)"
            raise RequestError(self._body.id, 503, message)
        await asyncio.sleep(0.2)
        await self._submit(subject)


def _choices(body: Asked | Embed) -> int:
    """Count the choices that a request asks for."""
    prompts = 1
    if (
        isinstance(body, Completion)
        and isinstance(body.prompt, list)
        and not isinstance(next(iter(body.prompt), 0), int)
    ):
        prompts = len(body.prompt)
    return prompts * (body.n or 1) if isinstance(body, Chat | Completion | Generate) else 1


def _made(kind: type[Any], **fields: Any) -> Any:
    """Make a request from fields as people write them; raises RequestError 400 naming what is wrong."""
    try:
        return msgspec.convert(msgspec.to_builtins(fields), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise RequestError("", 400, str(error)) from None
