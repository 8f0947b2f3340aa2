"""An engine's own chat template and tokenizer, for models that leave both to it (`text: true`).

Life of a chat at an actor: rendered to ids (`speak`), checked as any prompt is, generated from by ids, and each token
that comes told with the text that it completes. Prefill and decode each render it, and get the same ids. A stream that
goes on elsewhere is rendered again, with the tokens so far after it: their text has been told.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from actors.engines.engine import Emit, Engine, EngineInfo, Generation, misfit
from messages.codec import pack_tokens, unpack_tokens
from messages.frames import Finish, Said
from messages.work import Conversation

LONG: Final = 2_000
"""Characters from which a chat is rendered in a thread: they take as long as some ten small ones."""
OPENING_TOKENS: Final = 64


class UnspeakableError(Exception):
    """A chat that the template refuses or cannot render; the text says why."""


class Stream(Protocol):
    """Turns one stream's ids into text; what `push` returned before never changes."""

    def push(self, ids: list[int]) -> str:
        """Take the next ids and return the text that is certain now."""

    def finish(self) -> str:
        """Return what was held back, there being nothing to come."""


class Tongue(Protocol):
    """The template and the tokenizer of one engine."""

    def render(self, chat: Conversation) -> list[int]:
        """Turn a chat into the ids of the assistant's next turn; may run in a thread. Raises UnspeakableError."""

    def show(self, ids: list[int]) -> str:
        """Turn ids into text, special tokens shown."""

    def stream(self, before: list[int], chat: Conversation) -> Stream:
        """Begin the text of what comes after a rendered chat."""


Tell = Callable[[Said], None]
"""Called with the text of the token that the next `Emit` brings."""


async def speak(
    engine: Engine,
    tongue: Tongue,
    info: EngineInfo,
    chat: Conversation,
    asked: Generation,
    begin: Callable[[int], bool],
    tell: Tell,
    emit: Emit,
) -> None:
    """Render a chat and generate what comes after it, one token with its text at a time: `Engine.generate` for chats.

    `asked.prompt` is what was generated before. `begin` is told how many tokens the prompt has, and says whether it is
    still wanted. What the template or the engine refuses is a finish with a 400.
    """
    try:
        rendered = await asyncio.to_thread(tongue.render, chat) if _is_long(chat) else tongue.render(chat)
    except UnspeakableError as error:
        emit(b"", Finish("error", 400, str(error)))
        return
    made = unpack_tokens(asked.prompt)
    sampling = asked.sampling
    if (left := info.context_length - len(rendered) - len(made)) > 0:
        most = min(sampling.max_tokens, left)
        sampling = msgspec.structs.replace(sampling, max_tokens=most, min_tokens=min(sampling.min_tokens, most))
    asked = msgspec.structs.replace(asked, prompt=pack_tokens(rendered + made), sampling=sampling)
    if (why := misfit(asked, info) or engine.check(asked)) is not None:
        emit(b"", Finish("error", 400, f"messages: {why}"))
        return
    if not begin(len(rendered) + len(made)):
        emit(b"", Finish("abort", 499, "aborted"))
        return
    stream = tongue.stream(rendered, chat)
    stream.push(made)
    first = Said("", len(rendered), tongue.show(rendered[-OPENING_TOKENS:]))

    def told(tokens: bytes, finish: Finish | None) -> None:
        nonlocal first
        ids = unpack_tokens(tokens)
        well = finish is not None and finish.reason in ("stop", "length")
        for at in range(max(1, len(ids))):
            last = finish if at >= len(ids) - 1 else None
            # The token that ended the answer is none of its text.
            ends = last is not None and last.matched is not None and ids[at:] == [last.matched]
            first.text = "" if ends else stream.push(ids[at : at + 1])
            if last is not None and well:
                first.text += stream.finish()
            tell(first)
            emit(tokens[4 * at : 4 * at + 4], last)
            first = Said("")

    await engine.generate(asked, told)


def _is_long(chat: Conversation) -> bool:
    return sum(len(str(message.get("content") or "")) for message in chat.messages) > LONG or len(chat.messages) > 50
