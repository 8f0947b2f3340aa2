"""The requests that this processor owns: each with its prompt, its tokens so far, its deadline, and one last word.

A job is made when a request is accepted, is in the journal until its end, and ends in `Journal.end` or, where somebody
else owns the request now, in `Journal.leave`: nowhere else, and once.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from msgspec import Struct

from actors.processor.continuing import begins_anew
from actors.processor.logprobs import Names
from actors.processor.meter import Trail
from actors.processor.output import Output
from actors.processor.parsers.parser import Parser
from actors.processor.view import Seat
from messages import codec
from messages.frames import Finish, Said
from messages.submit import Done, Error, Logprob, ToolCall, Usage
from messages.work import Conversation, Sampling

Kind = Literal["chat", "completion", "generate"]


class Asked(Struct, kw_only=True):
    """A request as the processor works on it, whatever door and form it came by; everything in it has been checked.

    `prompt` is token ids; `received` what the client had got before it came to us, at attempt `before`; `ttl` is in
    seconds. `echo` is text that comes before the answer's own; `names` is there where log-probabilities are asked for,
    and names their tokens. With `one_call`, the first tool call ends the answer. A `chat` is rendered by the engine: it
    has no prompt here, but so many `chat_bytes`, and `parse` makes its parser, given how the rendering ends.
    """

    id: str
    kind: Kind
    prompt: list[int]
    sampling: Sampling
    ttl: float
    output: Output | None = None
    parser: Parser | None = None
    received: list[int] = []
    before: int = 0
    echo: str = ""
    names: Names | None = None
    one_call: bool = False
    chat: Conversation | None = None
    chat_bytes: int = 0
    parse: Callable[[str], Parser | None] | None = None


class Piece(Struct):
    """What has piled up for a client since it was last given something.

    Of a request with several choices, `index` is the one, and `finish_reason` is told with the last of it.
    """

    position: int
    token_ids: list[int]
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    logprobs: list[Logprob] = []
    index: int = 0
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class Outcome(Protocol):
    """What a client's request has become: one job, or the group of those that are its choices."""

    last: Done | Error | None

    @property
    def id(self) -> str:
        """The request's id."""

    @property
    def attempt(self) -> int:
        """The attempt as the client knows it."""

    @property
    def claim(self) -> int:
        """The attempt with which the client's submission began."""

    @property
    def over(self) -> bool:
        """Whether it has ended, or somebody else owns it."""

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""

    @property
    def sink(self) -> Any:
        """Where its output goes."""

    def take(self) -> Piece | None:
        """Give what has piled up since the last time, or None if nothing has."""

    def error(self, code: int, message: str, retry_after: float | None = None) -> Error:
        """Make the last word of a request that did not end well."""


class Sink(Protocol):
    """Where a request's output goes; none of these waits."""

    def accepted(self, job: Outcome) -> None:
        """The request is ours."""

    def grown(self, job: Outcome) -> None:
        """There is something to `take`."""

    def ended(self, job: Outcome) -> None:
        """The request has its last word; there may still be something to take before it."""

    def left(self, job: Outcome) -> None:
        """Somebody else owns the request now; no word is to be said by us."""


class Leg:
    """One side of an attempt: the seat that was asked to prefill or to decode, and whether it has taken it.

    `withdrawn` says that it was told to abort.
    """

    __slots__ = ("accepted", "done", "seat", "withdrawn")

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.accepted = False
        self.done = False
        self.withdrawn = False


class Job:
    """One request under way.

    `attempt` is fenced by the GPU actors and told to the client; `claim` is the attempt with which the client's
    submission began. `base` is the number of tokens that the attempt has in its prompt; one that is generated anew has
    none there, and must say the first `anew` again. `next` is the position in the attempt of the token that comes next.
    While it is `awaiting` the log-probabilities of its prompt, nothing is given to the client; `held` is how it has
    ended meanwhile. `trail` is the request's. Most jobs are `plain`: their tokens come with nothing beside them,
    were never there before, and can be put `aside` as they come, packed, and be read together (`settle`). `may_stop`
    says whether `stopped` can ever be.
    """

    __slots__ = (
        "_heard",
        "_tokens",
        "anew",
        "aside",
        "asked",
        "attempt",
        "awaiting",
        "base",
        "cached",
        "calls",
        "claim",
        "crashes",
        "deadline",
        "decode",
        "held",
        "id",
        "last",
        "logprobs",
        "may_stop",
        "next",
        "over",
        "packed",
        "plain",
        "prefill",
        "prompt_tokens",
        "reasoning",
        "refused",
        "resumed",
        "sent",
        "sink",
        "started",
        "text",
        "timer",
        "trail",
    )

    def __init__(self, asked: Asked, sink: Sink, now: float, trail: Trail) -> None:
        self.id = asked.id
        self.asked = asked
        self.sink = sink
        self.trail = trail
        self._heard = 0.0
        self.claim = self.attempt = asked.before + 1
        self.deadline = now + asked.ttl
        self.timer: asyncio.TimerHandle | None = None
        self.packed = codec.pack_tokens(asked.prompt)
        self.prompt_tokens = len(asked.prompt)
        self._tokens: list[int] = list(asked.received)
        self.aside: list[bytes] = []
        self.sent = len(self._tokens)
        self.base = self.anew = self.next = 0
        self.plain = False
        self.may_stop = asked.one_call or (asked.output is not None and asked.output.watched)
        self.begin_attempt()
        self.text = asked.echo
        self.reasoning = ""
        self.calls: list[ToolCall] = []
        self.logprobs: list[Logprob] = []
        self.awaiting = asked.sampling.prompt_logprobs and not self._tokens
        self.held: Literal["stop", "length"] | None = None
        self.prefill: Leg | None = None
        self.decode: Leg | None = None
        self.refused: dict[str, int] = {}
        self.crashes: tuple[str, ...] = ()
        self.cached = 0
        self.resumed = bool(self._tokens) and asked.sampling.temperature > 0
        self.last: Done | Error | None = None
        self.over = False
        self.started = time.time()
        if self._tokens:
            self._prime()

    def begin_attempt(self) -> None:
        """Say where the next attempt begins: after the tokens so far, or anew."""
        there = len(self.tokens)
        self.base, self.anew = (0, there) if begins_anew(self.asked.sampling) else (there, 0)
        self.next = 0
        asked = self.asked
        beside = asked.names is not None or asked.chat is not None or asked.sampling.prompt_logprobs
        self.plain = not (self.anew or beside or asked.one_call)

    @property
    def tokens(self) -> list[int]:
        """The answer's tokens so far."""
        if self.aside:
            self.settle()
        return self._tokens

    def compare(self, ids: list[int], *, ends: bool) -> int:
        """Compare the next tokens of an attempt that is generated anew with what there was before.

        Returns how many of them are nothing new; -1 where they are not the same, or `ends` comes too early.
        """
        count = min(len(ids), self.anew - self.next)
        if ids[:count] != self.tokens[self.next : self.next + count]:
            return -1
        self.next += count
        return -1 if ends and self.next < self.anew else count

    def settle(self) -> None:
        """Read the tokens that were put aside."""
        if aside := self.aside:
            self.aside = []
            self._take_in(codec.unpack_tokens(aside[0] if len(aside) == 1 else b"".join(aside)))

    def receive(self, ids: list[int], finish: Finish | None, ranked: list[codec.Ranked] | None = None) -> None:
        """Take the next tokens of the stream, and read them; a token that ends the answer is none of its text."""
        self.next += len(ids)
        ends = finish is not None and finish.matched is not None and bool(ids) and ids[-1] == finish.matched
        self._take_in(ids, ends, ranked)

    def _take_in(self, ids: list[int], ends: bool = False, ranked: list[codec.Ranked] | None = None) -> None:
        """Read tokens, of which the last one is no text if it `ends` the answer; after a stop string there are none."""
        output = self.asked.output
        if output is not None and output.stopped:
            return
        said = ids[:-1] if ends else ids
        used, text = output.push(said) if output is not None else (len(said), "")
        self._grow(ids if used == len(said) else ids[:used])
        if ranked is not None and self.asked.names is not None:
            self.logprobs += self.asked.names.ranked(said[:used], ranked)
        if text:
            self._read(text)

    def _grow(self, ids: list[int]) -> None:
        self._tokens += ids
        if ids:
            self._heard = self.trail.heard(len(ids), self._heard)

    def hear(self, ids: list[int], said: Said) -> None:
        """Take the next tokens of a chat that the engine renders, and the text that it has made of them."""
        asked = self.asked
        if said.prompt_tokens and not self.prompt_tokens:
            self.prompt_tokens = said.prompt_tokens
            if asked.parse is not None:
                asked.parser = asked.parse(said.opening)
        self.next += len(ids)
        self._grow(ids)
        if asked.output is not None and (text := asked.output.told(said.text)):
            self._read(text)

    def rank_prompt(self, ranked: list[codec.Ranked]) -> None:
        """Take the log-probabilities of the prompt; from here on there is something for the client."""
        if self.asked.names is not None:
            self.logprobs = self.asked.names.prompt(self.asked.prompt, ranked) + self.logprobs
        self.awaiting = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the stream, or the only tool call that may be."""
        asked = self.asked
        if asked.one_call and asked.parser is not None and asked.parser.called:
            return True
        return asked.output is not None and asked.output.stopped

    def take(self) -> Piece | None:
        """Give what has piled up since the last time, or None if nothing has."""
        tokens, sent = self.tokens, self.sent
        if self.awaiting:
            return None
        if sent == len(tokens) and not self.text and not self.reasoning and not self.calls:
            return None
        piece = Piece(
            sent, tokens[sent:] if sent else list(tokens), self.text, self.reasoning, self.calls, self.logprobs
        )
        self.sent = len(tokens)
        self.text = self.reasoning = ""
        self.calls = []
        if self.logprobs:
            self.logprobs = []
        return piece

    def done(self, reason: Literal["stop", "length"]) -> Done:
        """Bring the text to its end and make the last word of a request that ended well."""
        asked = self.asked
        if asked.output is not None and not asked.output.stopped and (rest := asked.output.finish()):
            self._read(rest)
        if self.stopped:
            reason = "stop"
        called = False
        if asked.parser is not None:
            self._parsed(asked.parser.finish())
            called = asked.parser.called
        return Done(
            id=self.id,
            attempt=self.attempt,
            finish_reason="tool_calls" if called and reason == "stop" else reason,
            usage=Usage(
                prompt_tokens=self.prompt_tokens, completion_tokens=len(self.tokens), cached_tokens=self.cached
            ),
            resumed=self.resumed,
        )

    def last_word_again(self) -> Done | None:
        """Make the last word of a stream that its client has in full: only the word itself was lost on the way."""
        sampling, tokens = self.asked.sampling, self.tokens
        if not tokens:
            return None
        if self.stopped or (tokens[-1] in sampling.stop_token_ids and not sampling.ignore_eos):
            last = self.done("stop")
        elif len(tokens) >= sampling.max_tokens:
            last = self.done("length")
        else:
            return None
        self.take()
        return last

    def error(self, code: int, message: str, retry_after: float | None = None) -> Error:
        """Make the last word of a request that did not end well."""
        return Error(id=self.id, code=code, message=message, attempt=self.attempt, retry_after=retry_after)

    def _prime(self) -> None:
        """Bring the text to where the last owner was, which has already told it."""
        if self.asked.output is not None:
            _, text = self.asked.output.push(self._tokens)
            self._read(text)
        self.text = self.reasoning = ""
        self.calls = []

    def _read(self, text: str) -> None:
        if self.asked.parser is None:
            self.text += text
        else:
            self._parsed(self.asked.parser.push(text))

    def _parsed(self, parsed: tuple[str, str, list[ToolCall]]) -> None:
        reasoning, text, calls = parsed
        self.reasoning += reasoning
        self.text += text
        self.calls += [call for call in calls if not call.index] if self.asked.one_call else calls


class Journal:
    """All jobs of one processor, by their requests' ids.

    `on_end` is called with each job that is over, before its sink learns of it.
    """

    def __init__(self, on_end: Callable[[Job], None]) -> None:
        self._on_end = on_end
        self.jobs: dict[str, Job] = {}
        self.finished = 0
        self.failed = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self.jobs.values()))

    def get(self, request: str) -> Job | None:
        """Find a job by its request's id."""
        return self.jobs.get(request)

    def begin(self, job: Job) -> None:
        """Take a job in; from here on it has a deadline."""
        self.jobs[job.id] = job
        self.empty.clear()
        job.timer = asyncio.get_running_loop().call_at(job.deadline, self._too_late, job)

    def end(self, job: Job, last: Done | Error) -> None:
        """Say the last word on a job; on one that has had it, nothing happens."""
        if job.over:
            return
        job.last = last
        if isinstance(last, Done):
            self.finished += 1
        else:
            self.failed += 1
        self._over(job)
        job.sink.ended(job)

    def leave(self, job: Job) -> None:
        """Let go of a job that somebody else owns now, without a word."""
        if not job.over:
            self._over(job)
            job.sink.left(job)

    def _over(self, job: Job) -> None:
        job.over = True
        del self.jobs[job.id]
        if job.timer is not None:
            job.timer.cancel()
        if not self.jobs:
            self.empty.set()
        self._on_end(job)

    def _too_late(self, job: Job) -> None:
        got = f" and {len(job.tokens)} tokens" if job.tokens else ""
        self.end(job, job.error(408, f"the deadline of {job.asked.ttl:g} s has passed{got}"))
